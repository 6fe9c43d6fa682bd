//! Boards: wires devices to buses, and the run loop
