//! VMDK: every subformat in both directions, and generated images of programs that are not available.

mod build;
mod chains;
mod descriptors;
mod esxi;
mod hostile;
mod read;
mod streams;
mod write;

/// The subformats that are written.
pub(super) const KINDS: [&str; 6] =
    ["monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs"];

/// Returns the beginning of a file as text.
fn read_text(path: &std::path::Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    String::from_utf8_lossy(&bytes[..bytes.len().min(16 << 10)]).into_owned()
}
