//! Content compared with other people's programs, in both directions.

mod features;
mod matrix;
pub(crate) mod overlays;
mod readers;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
