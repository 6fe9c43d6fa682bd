//! Guest-physical memory: RAM layout, EPT, guest page-table walkers, dirty tracking
