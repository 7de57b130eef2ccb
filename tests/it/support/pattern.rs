//! Guest content that is the same each time.

pub use super::Random;

/// A kind of guest content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    Empty,
    /// Everywhere, and it compresses well.
    Dense,
    /// A few runs of many sizes at odd offsets.
    Sparse,
    /// Each fourth block of 4 KiB.
    Islands,
    Incompressible,
    /// Data up to the end, which is in the middle of a cluster.
    Tail,
}

pub const ALL: [Pattern; 6] =
    [Pattern::Empty, Pattern::Dense, Pattern::Sparse, Pattern::Islands, Pattern::Incompressible, Pattern::Tail];

impl Pattern {
    /// About `size` bytes, whole sectors.
    pub fn make(self, size: usize) -> Vec<u8> {
        let mut random = Random::new(size as u64 + self as u64);
        let mut bytes = vec![0; size];
        match self {
            Pattern::Empty => {}
            Pattern::Dense => fill(&mut bytes, &mut random),
            Pattern::Sparse => {
                for _ in 0..8 {
                    let start = random.below(size as u64) as usize;
                    let len = 1 << random.below(15);
                    let end = (start + len).min(size);
                    fill(&mut bytes[start..end], &mut random);
                }
            }
            Pattern::Islands => {
                bytes.chunks_mut(4096).step_by(4).for_each(|block| fill(block, &mut random));
            }
            Pattern::Incompressible => bytes = random.bytes(size),
            Pattern::Tail => {
                bytes.resize(size + 3 * 512, 0);
                let start = bytes.len() - size / 8;
                fill(&mut bytes[start..], &mut random);
            }
        }
        bytes
    }
}

/// Words from a small vocabulary: data that compresses, with matches near and far.
fn fill(bytes: &mut [u8], random: &mut Random) {
    let vocabulary: Vec<Vec<u8>> = (0..64).map(|_| random.next()).map(|seed| Random::new(seed).bytes(24)).collect();
    let mut at = 0;
    while at < bytes.len() {
        let word = &vocabulary[random.below(64) as usize];
        let len = (8 + random.below(17) as usize).min(bytes.len() - at);
        bytes[at..at + len].copy_from_slice(&word[..len]);
        at += len;
    }
}
