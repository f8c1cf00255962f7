use clap::ValueEnum;
use segpack_runtime_min::models::decoder::Check;
use segpack_runtime_min::ops::Compute;

use super::values::{expert_room, size, threads};
use crate::steps::device::DeviceChoice;
use crate::steps::run::ExpertRoom;
use crate::work::default_jobs;

/// Where a model runs.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Placement {
    /// Where to run: cpu, cuda (the first GPU), cuda:N or auto (`segpack devices` tells what there
    /// is)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// GPU memory to use; all that is free where left out. Experts that do not fit come when they
    /// are needed
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub device_memory: Option<u64>,
}

/// What a model may use.
#[derive(Debug, clap::Args)]
pub struct Resources {
    /// Memory for the whole process (6GiB, 1500MB) [default: what it needs, at most 7/8 of what is
    /// available]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Most experts in memory: a number (64), or a size (2GiB)
    #[arg(long, value_name = "N|SIZE", value_parser = expert_room)]
    pub expert_cache: Option<ExpertRoom>,
    /// When the digests of segments are compared
    #[arg(long, value_name = "WHEN", default_value = "always")]
    pub check: CheckName,
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

impl Resources {
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(default_jobs)
    }

    /// When digests are compared.
    pub fn check(&self) -> Check {
        self.check.into()
    }
}

impl From<ComputeName> for Compute {
    fn from(name: ComputeName) -> Self {
        match name {
            ComputeName::F32 => Self::F32,
            ComputeName::Bf16 => Self::Bf16,
        }
    }
}

impl From<CheckName> for Check {
    fn from(name: CheckName) -> Self {
        match name {
            CheckName::Always => Self::Always,
            CheckName::First => Self::First,
            CheckName::Never => Self::Never,
        }
    }
}

/// Precision of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ComputeName {
    /// As exact as 32 bits are
    F32,
    /// Rounded where the official bf16 code rounds
    Bf16,
}

/// When digests are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckName {
    /// At every load
    Always,
    /// At the first load of each segment
    First,
    /// Never
    Never,
}
