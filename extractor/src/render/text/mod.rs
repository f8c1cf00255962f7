//! Documents as text for a terminal. Every line ends with a line end.

mod bench;
mod demo;
mod devices;
mod diff;
mod export;
mod findings;
mod graft;
mod info;
mod ls;
mod numbers;
mod pack;
mod page;
mod repair;
mod run;
mod scan;
#[cfg(feature = "serve")]
mod serve;
mod share;
mod sign;
mod speak;
mod unpack;
mod update;
mod validate;
mod values;
mod verify;
mod vocode;

#[cfg(test)]
mod tests;

pub(crate) use bench::{bench, gpu_bench};
pub(crate) use demo::step as demo_step;
pub(crate) use devices::devices;
pub(crate) use diff::diff;
pub(crate) use export::export;
pub(crate) use findings::findings;
pub(crate) use graft::graft;
pub(crate) use info::info;
pub(crate) use ls::{Total, segment, tensor, total};
pub(crate) use numbers::{Sizes, bytes, counted};
pub(crate) use pack::{consumption, pack, plan};
pub(crate) use repair::repair;
pub(crate) use run::{batch, candidates, experts, figures, prompt_with_media, rank, restricted};
pub(crate) use scan::scan;
#[cfg(feature = "serve")]
pub(crate) use serve::serve;
pub(crate) use share::share;
pub(crate) use sign::sign;
pub(crate) use speak::speak;
pub(crate) use unpack::unpack;
pub(crate) use update::update;
pub(crate) use validate::validate;
pub(crate) use verify::verify;
pub(crate) use vocode::vocode;
