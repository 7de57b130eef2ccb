//! Tells units that are not worth an effort: compressed or encrypted already.

/// Bytes that are sampled, and the number of pieces that they are in.
const SAMPLED: usize = 4096;
const PIECES: usize = 16;
/// Shorter units are not sampled.
const LEAST: usize = 4 * SAMPLED;
/// The chi-squared statistic of bytes that are distributed evenly is 255 on average, with a standard deviation of 23 (K. Pearson, 1900). At this
/// value, codes of their own would save about one percent.
const EVEN: usize = 700;

/// Whether a sample of `unit` has all bytes about as often. There may be matches nevertheless.
pub(super) fn looks_incompressible(unit: &[u8]) -> bool {
    if unit.len() < LEAST {
        return false;
    }
    let mut counts = [0_usize; 256];
    let pieces = unit.chunks(unit.len() / PIECES).take(PIECES);
    for byte in pieces.flat_map(|piece| piece.iter().take(SAMPLED / PIECES)) {
        counts[usize::from(*byte)] += 1;
    }
    // The sum of (n - e)^2 / e for an expected number e of each.
    let expected = SAMPLED / 256;
    counts.iter().map(|count| count.abs_diff(expected).pow(2)).sum::<usize>() < EVEN * expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_alone_looks_incompressible() {
        let noise = |len| crate::testing::noise(len, 1);
        assert!(looks_incompressible(&noise(65_536)));
        assert!(looks_incompressible(&noise(2 << 20)));
        assert!(!looks_incompressible(&noise(LEAST as u64 - 1)), "too short for a sample");
        assert!(!looks_incompressible(&[0; 65_536]));
        // Seven bits of each byte.
        assert!(!looks_incompressible(&noise(65_536).iter().map(|byte| byte & 0x7f).collect::<Vec<_>>()));
        let half: Vec<u8> = [noise(40_000), vec![0; 25_536]].concat();
        assert!(!looks_incompressible(&half));
    }
}
