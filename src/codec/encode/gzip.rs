//! Members of gzip (RFC 1952).

use zlib_rs::crc32::crc32;

use super::Encode;
use crate::codec::{Codec, Encoding, gzip};

struct Member {
    deflate: Box<dyn Encode>,
    deflated: Vec<u8>,
}

pub(super) fn encoder(encoding: &Encoding) -> Box<dyn Encode> {
    let deflate = super::deflate::encoder(&Encoding { codec: Codec::Deflate, ..encoding.clone() });
    Box::new(Member { deflate, deflated: Vec::new() })
}

impl Encode for Member {
    fn encode(&mut self, data: &[u8], payload: &mut Vec<u8>) -> Option<usize> {
        let len = self.deflate.encode(data, &mut self.deflated)?;
        let deflated = self.deflated.get(..len)?;
        let member_len = u32::try_from(len + gzip::OVERHEAD).ok()?;
        let data_len = u32::try_from(data.len()).ok()?;
        payload.clear();
        payload.extend(gzip::header(member_len, data_len));
        payload.extend(deflated);
        payload.extend(crc32(0, data).to_le_bytes());
        payload.extend(data_len.to_le_bytes());
        Some(payload.len())
    }
}
