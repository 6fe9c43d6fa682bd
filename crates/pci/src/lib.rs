//! PCI: configuration space, BARs, capabilities, MSI and MSI-X, host and ISA bridges
