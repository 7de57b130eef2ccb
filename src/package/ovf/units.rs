//! Units of capacities: a subset of DMTF DSP0004, annex "Programmatic Units".

/// The number of bytes of a unit: factors separated by `*`, each a number, a power, or a multiple of the byte. `None` for any
/// other unit, and from 2^64 on. An empty unit is the byte.
///
/// The decimal prefixes count in powers of 1024 too, as VirtualBox and VMware mean them.
pub(super) fn factor(unit: &str) -> Option<u64> {
    if unit.trim().is_empty() {
        return Some(1);
    }
    unit.split('*').try_fold(1u64, |product, factor| product.checked_mul(single(factor.trim())?))
}

fn single(factor: &str) -> Option<u64> {
    if let Some((base, exponent)) = factor.split_once('^') {
        return number(base)?.checked_pow(u32::try_from(number(exponent)?).ok()?);
    }
    if let Some(number) = number(factor) {
        return Some(number);
    }
    let lower = factor.to_ascii_lowercase();
    let prefix = lower.strip_suffix("bytes").or_else(|| lower.strip_suffix("byte"))?;
    let exponent = match prefix {
        "" => 0,
        "kilo" | "kibi" => 1,
        "mega" | "mebi" => 2,
        "giga" | "gibi" => 3,
        "tera" | "tebi" => 4,
        _ => return None,
    };
    1024u64.checked_pow(exponent)
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_producers() {
        for (unit, bytes) in [
            ("", Some(1)),
            ("byte", Some(1)),
            ("Bytes", Some(1)),
            ("byte * 2^30", Some(1 << 30)),
            ("byte*2^20", Some(1 << 20)),
            ("byte * 10^9", Some(1_000_000_000)),
            ("2^10 * byte * 3", Some(3072)),
            ("MegaBytes", Some(1 << 20)),
            ("kibibyte", Some(1024)),
            ("GigaBytes", Some(1 << 30)),
            ("byte * 2^64", None),
            ("byte * 2^63 * 2", None),
            ("byte * 2^-3", None),
            ("byte * 0^99999999999", None),
            ("bit", None),
            ("percent", None),
            ("byte *", None),
            ("2^", None),
        ] {
            assert_eq!(factor(unit), bytes, "{unit}");
        }
    }
}
