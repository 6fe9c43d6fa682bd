//! An x86-64 processor with VT-x in software
