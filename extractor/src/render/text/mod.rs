//! Documents as text for a terminal. Every line ends with a line end.

mod bench;
mod demo;
mod devices;
mod export;
mod findings;
mod ls;
mod numbers;
mod pack;
mod page;
mod run;
mod scan;
mod unpack;
mod validate;
mod verify;

#[cfg(test)]
mod tests;

pub use bench::{bench, gpu_bench};
pub use demo::step as demo_step;
pub use devices::devices;
pub use export::export;
pub use findings::findings;
pub use ls::{segment, tensor};
pub use numbers::{bytes, counted, grouped};
pub use pack::{pack, plan};
pub use run::{candidates, experts, figures, rank};
pub use scan::scan;
pub use unpack::unpack;
pub use validate::validate;
pub use verify::verify;
