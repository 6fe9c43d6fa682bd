//! The vCPU and VM traits, and the engines behind them
