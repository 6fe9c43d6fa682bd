//! The VMCS as data: field encodings, region layout, entry checks, exit reasons and qualifications
