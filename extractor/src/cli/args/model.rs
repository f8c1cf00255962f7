use clap::ValueEnum;
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::weights::ChecksumPolicy;

use super::DEVICE;
use super::values::{expert_cache_size, size, threads};
use crate::work::default_jobs;
use segpack_runtime_min::session::{DeviceChoice, ExpertCacheSize, MemoryLimit, SessionOptions};

/// Where a model runs.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct PlacementArgs {
    /// Device: cpu, cuda (the first GPU), cuda:N or auto (`segpack devices` lists them)
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = DEVICE)]
    pub device: DeviceChoice,
    /// GPU memory budget [default: all that is free]; experts that do not fit are copied on demand
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = DEVICE)]
    pub device_memory: Option<u64>,
}

/// What a model may use.
#[derive(Debug, clap::Args)]
pub(crate) struct Resources {
    /// Memory budget of the whole process, such as 6GiB or 1500MB [default: what the model needs,
    /// at most 7/8 of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = DEVICE)]
    pub memory: Option<u64>,
    /// Maximum size of the expert cache: a number of experts (64) or a size (2GiB)
    #[arg(long, value_name = "N|SIZE", value_parser = expert_cache_size, help_heading = DEVICE)]
    pub expert_cache: Option<ExpertCacheSize>,
    /// When to compare the digests of segments
    #[arg(long, value_name = "WHEN", default_value = "always", help_heading = DEVICE)]
    pub check: CheckName,
    /// Number of threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads, help_heading = DEVICE)]
    pub threads: Option<usize>,
}

impl Resources {
    /// As [`CheckName::leaves_unchecked`].
    pub(crate) fn leaves_unchecked(&self) -> bool {
        self.check.leaves_unchecked()
    }

    /// A session with them.
    pub(crate) fn session(&self, placement: PlacementArgs) -> SessionOptions {
        let mut options = SessionOptions::default();
        options.device = placement.device;
        options.device_memory = placement.device_memory;
        options.memory = self
            .memory
            .map_or(MemoryLimit::Available, MemoryLimit::Bytes);
        options.expert_cache = self.expert_cache;
        options.check = self.check.into();
        options.threads = Some(self.threads.unwrap_or_else(default_jobs));
        options
    }
}

/// Where and how precisely a model is run, and what it may use.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    placement: PlacementArgs,
    /// Precision of activations
    #[arg(long, value_name = "TYPE", default_value = "f32", help_heading = DEVICE)]
    compute: ComputeName,
    #[command(flatten)]
    resources: Resources,
}

impl ModelArgs {
    /// As [`CheckName::leaves_unchecked`].
    pub(crate) fn leaves_unchecked(&self) -> bool {
        self.resources.leaves_unchecked()
    }

    /// A session with them.
    pub(crate) fn session(&self) -> SessionOptions {
        let mut options = self.resources.session(self.placement);
        options.compute = self.compute.into();
        options
    }
}

/// What a model without a choice of device may use.
#[derive(Debug, clap::Args)]
pub(crate) struct CpuResources {
    /// Memory budget of the whole process, such as 1GiB or 500MB [default: what is needed, at most
    /// 7/8 of the available memory]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = DEVICE)]
    memory: Option<u64>,
    /// When to compare the digests of segments
    #[arg(long, value_name = "WHEN", default_value = "always", help_heading = DEVICE)]
    check: CheckName,
    /// Number of threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = threads, help_heading = DEVICE)]
    threads: Option<usize>,
}

impl CpuResources {
    /// As [`CheckName::leaves_unchecked`].
    pub(crate) fn leaves_unchecked(&self) -> bool {
        self.check.leaves_unchecked()
    }

    /// A session with them.
    pub(crate) fn session(&self) -> SessionOptions {
        let resources = Resources {
            memory: self.memory,
            expert_cache: None,
            check: self.check,
            threads: self.threads,
        };
        resources.session(PlacementArgs {
            device: DeviceChoice::Cpu,
            device_memory: None,
        })
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

impl CheckName {
    /// Whether some segments are used without their digests being compared.
    fn leaves_unchecked(self) -> bool {
        self != Self::Always
    }
}

impl From<CheckName> for ChecksumPolicy {
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
    /// 32-bit floating point throughout
    F32,
    /// Rounded to bf16 wherever the official bf16 code rounds
    Bf16,
}

/// When digests are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckName {
    /// On every load
    Always,
    /// On the first load of each segment
    First,
    /// Never
    Never,
}
