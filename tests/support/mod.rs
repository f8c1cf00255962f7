//! What the tests share.

pub mod checkpoint;
pub mod cli;
pub mod damage;
#[cfg(target_os = "linux")]
pub mod faults;
pub mod folders;
#[cfg(target_os = "linux")]
pub mod gpu;
#[cfg(all(unix, feature = "serve"))]
pub mod http;
pub mod hub;
pub mod liar;
#[cfg(feature = "remote")]
pub mod model_server;
pub mod packs;
#[cfg(all(target_os = "linux", feature = "remote"))]
pub mod proxy;
pub mod request;
pub mod signing;
#[cfg(all(target_os = "linux", feature = "remote"))]
pub mod store;
pub mod tiny;
