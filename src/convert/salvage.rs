//! Reading what can be read of a damaged image.

use super::Converter;
use super::report::Damage;
use crate::driver::ExtentKind;
use crate::error::{Error, Result};
use crate::image::{Image, Scratch, Span};

/// Guest bytes that are read at once after a failure, in this order: a disk fails by sectors, which the system reads by pages.
const PIECES: [u64; 3] = [64 << 10, 4096, 512];

/// Replaces what cannot be read by a pattern.
pub(super) struct Salvage<'a> {
    settings: &'a Converter,
    /// What has been replaced.
    pub unreadable: Vec<Damage>,
}

impl<'a> Salvage<'a> {
    pub fn new(settings: &'a Converter) -> Self {
        Salvage { settings, unreadable: Vec::new() }
    }

    /// The byte that replaces what cannot be read.
    pub fn pattern(&self) -> u8 {
        self.settings.salvage_pattern
    }

    /// Fills `buf` with the data of `span`, as far as it can be read.
    ///
    /// # Errors
    /// [`Error::Cancelled`] only.
    pub fn load(&mut self, image: &Image, span: Span, buf: &mut [u8], scratch: &mut Scratch) -> Result<()> {
        // Each read of a bad disk can take seconds.
        if self.settings.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Err(error) = image.load(&span, buf, scratch) else { return Ok(()) };
        // A compressed unit is lost as a whole.
        let is_data = matches!(span.kind, ExtentKind::Data(_));
        let Some(piece) = PIECES.into_iter().find(|piece| is_data && *piece < span.len) else {
            buf.fill(self.pattern());
            self.unreadable.push(Damage::new(span.offset..span.end(), error));
            return Ok(());
        };
        let (mut at, mut rest) = (span.offset, buf);
        while at < span.end() {
            let part = span.clip(at, (at / piece + 1) * piece);
            let (buf, after) = rest.split_at_mut(part.len as usize);
            self.load(image, part, buf, scratch)?;
            (at, rest) = (part.end(), after);
        }
        Ok(())
    }
}
