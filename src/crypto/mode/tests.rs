use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn known_answers_of_ieee_1619() {
    // Annex B, vectors 1, 2, 4, 10 and 11; the long ones up to their first 32 bytes.
    let counting: Vec<u8> = (0..512).map(|at| at as u8).collect();
    let e_256 = "2718281828459045235360287471352662497757247093699959574966967627";
    let pi_256 = "3141592653589793238462643383279502884197169399375105820974944592";
    for (key, number, plain, expected) in [
        ("00".repeat(32), 0, vec![0; 32], "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e"),
        (
            "11".repeat(16) + &"22".repeat(16),
            0x33_3333_3333,
            vec![0x44; 32],
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
        (
            "2718281828459045235360287471352631415926535897932384626433832795".into(),
            0,
            counting.clone(),
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
        ),
        (
            e_256.to_owned() + pi_256,
            0xff,
            counting.clone(),
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
        ),
        (
            e_256.to_owned() + pi_256,
            0xffff,
            counting,
            "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11",
        ),
    ] {
        let spec = CipherSpec::parse("aes", "xts-plain64").unwrap();
        let cipher = spec.with_key(&bytes(&key), plain.len()).unwrap();
        let stored = cipher.encrypted(&plain, number);
        assert_eq!(stored[..32], bytes(expected), "{number:#x}");
        assert_eq!(cipher.decrypted(&stored, number)[..], plain);
    }
}

#[test]
fn known_answer_of_cbc() {
    // NIST SP 800-38A, F.2.1, but with the first vector of plain64 for sector 0, which is zeros.
    let spec = CipherSpec::parse("aes", "cbc-plain64").unwrap();
    let cipher = spec.with_key(&bytes("000102030405060708090a0b0c0d0e0f"), 512).unwrap();
    let mut plain = vec![0; 512];
    plain[..16].copy_from_slice(&bytes("00112233445566778899aabbccddeeff"));
    assert_eq!(cipher.encrypted(&plain, 0)[..16], bytes("69c4e0d86a7b0430d8cdb78070b4c55a"));
}

#[test]
fn names_and_keys() {
    for (cipher, mode, key) in [
        ("aes", "xts-plain64", 32),
        ("aes", "xts-plain", 64),
        ("serpent", "xts-plain64", 64),
        ("twofish", "cbc-essiv:sha256", 32),
        ("aes", "cbc-plain", 24),
        ("aes", "xts-essiv:sha256", 64),
    ] {
        let spec = CipherSpec::parse(cipher, mode).unwrap();
        assert_eq!((spec.cipher.name(), &*spec.mode_name()), (cipher, mode));
        assert!(spec.with_key(&vec![0; key], 512).is_some(), "{cipher}-{mode}");
        assert!(spec.with_key(&vec![0; key + 1], 512).is_none() && spec.with_key(&[], 512).is_none());
    }
    // A digest that is not a key.
    assert!(CipherSpec::parse("aes", "cbc-essiv:sha1").unwrap().with_key(&[0; 16], 512).is_none());
    for (cipher, mode) in [
        ("camellia", "xts-plain64"),
        ("aes", "xts"),
        ("aes", "ecb"),
        ("aes", "lrw-benbi"),
        ("aes", "xts-plain64:sha256"),
        ("aes", "cbc-essiv"),
        ("aes", "cbc-essiv:md5"),
        ("", ""),
    ] {
        assert_eq!(CipherSpec::parse(cipher, mode), None, "{cipher}-{mode}");
    }
}

/// Block by block, as the standards have it.
fn naive(spec: CipherSpec, key: &[u8], plain: &[u8], sector_size: usize, number: u64) -> Vec<u8> {
    let encrypt = |key: &[u8], block: [u8; 16]| -> [u8; 16] {
        let mut block = [Block::from(block)];
        BlockCipher::new(spec.cipher, key).unwrap().encrypt(&mut block);
        block[0].into()
    };
    let mut out = Vec::new();
    for (index, sector) in plain.chunks(sector_size).enumerate() {
        let number = number.wrapping_add((index * sector_size / 512) as u64);
        let mut iv = [0; 16];
        match spec.iv {
            Iv::Plain => iv[..4].copy_from_slice(&(number as u32).to_le_bytes()),
            _ => iv[..8].copy_from_slice(&number.to_le_bytes()),
        }
        if let Iv::Essiv(hash) = spec.iv {
            iv = encrypt(&hash.digest(&[key]), iv);
        }
        let (first, second) = key.split_at(key.len() / 2);
        if spec.mode == Mode::Xts {
            iv = encrypt(second, iv);
        }
        for block in sector.chunks(16) {
            let mut block: [u8; 16] = block.try_into().unwrap();
            block.iter_mut().zip(iv).for_each(|(byte, iv)| *byte ^= iv);
            if spec.mode == Mode::Cbc {
                block = encrypt(key, block);
                iv = block;
            } else {
                block = encrypt(first, block);
                block.iter_mut().zip(iv).for_each(|(byte, iv)| *byte ^= iv);
                let carry = iv[15] >> 7;
                for at in (1..16).rev() {
                    iv[at] = iv[at] << 1 | iv[at - 1] >> 7;
                }
                iv[0] = (iv[0] << 1) ^ (carry * 0x87);
            }
            out.extend(block);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn batches_equal_single_blocks(
        cipher in prop::sample::select(vec!["aes", "serpent", "twofish"]),
        mode in prop::sample::select(vec!["xts-plain64", "xts-plain", "cbc-plain", "cbc-plain64", "cbc-essiv:sha256"]),
        (shift, sectors) in (0u32..4, 1usize..70),
        number in prop_oneof![any::<u64>(), Just(u64::from(u32::MAX) - 3)],
        seed in any::<u8>(),
    ) {
        let spec = CipherSpec::parse(cipher, mode).unwrap();
        let key: Vec<u8> = (0..if spec.mode == Mode::Xts { 64 } else { 32 }).map(|at| seed.wrapping_add(at)).collect();
        let size = 512 << shift;
        let plain: Vec<u8> = (0..size * sectors).map(|at| (at * 11 / 7) as u8 ^ seed).collect();
        let sectors = spec.with_key(&key, size).unwrap();
        let stored = sectors.encrypted(&plain, number);
        prop_assert!(stored == naive(spec, &key, &plain, size, number));
        prop_assert!(sectors.decrypted(&stored, number)[..] == plain[..]);
    }
}
