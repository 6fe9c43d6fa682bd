//! IDE: ATA and ATAPI drives behind a PIIX3 bus-master controller
