//! The CHS geometry, and the disk size with or without it (the document, "Appendix: CHS Calculation").

use super::footer::Footer;
use super::{FORMAT_NAME, SECTOR};
use crate::error::Result;
use crate::info::ImageInfo;
use crate::options::{OptionSpec, Options};

/// Cylinders, heads and sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The largest geometry, which all larger disks have too.
    pub const MAX: Geometry = Geometry { cylinders: 65535, heads: 16, sectors_per_track: 255 };

    /// The geometry of a disk of `sectors`, rounded down to a cylinder.
    pub fn from_sectors(sectors: u64) -> Geometry {
        let sectors = sectors.min(Self::MAX.sectors());
        let (heads, sectors_per_track) = if sectors >= 65535 * 16 * 63 {
            (16, 255)
        } else {
            let tracks = sectors / 17;
            let heads = tracks.div_ceil(1024).max(4);
            if heads <= 16 && tracks < heads * 1024 {
                (heads, 17)
            } else if sectors / 31 < 16 * 1024 {
                (16, 31)
            } else {
                (16, 63)
            }
        };
        let cylinders = sectors / sectors_per_track / heads;
        Geometry { cylinders: cylinders as u16, heads: heads as u8, sectors_per_track: sectors_per_track as u8 }
    }

    /// Number of sectors.
    pub fn sectors(self) -> u64 {
        u64::from(self.cylinders) * self.cylinder_sectors()
    }

    /// Size of the disk in bytes.
    pub fn bytes(self) -> u64 {
        self.sectors() * SECTOR
    }

    /// The geometry of the smallest disk of at least `sectors` that covers them; `None` if the largest geometry is too small. It
    /// can differ from the geometry of its own size: with more heads, a slightly larger disk can have a smaller geometry.
    pub fn enclosing(sectors: u64) -> Option<Geometry> {
        if sectors > Self::MAX.sectors() {
            return None;
        }
        (sectors..).map(Self::from_sectors).find(|geometry| geometry.sectors() >= sectors)
    }

    fn cylinder_sectors(self) -> u64 {
        u64::from(self.heads) * u64::from(self.sectors_per_track)
    }
}

/// The field of the footer that has the disk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeField {
    Geometry,
    CurrentSize,
}

/// The options for reading an image.
pub(super) const READ_OPTIONS: &[OptionSpec] = &[OptionSpec {
    name: FORCE_SIZE_CALC,
    values: "current_size|chs",
    help: "the field with the disk size [default: by the program that created the image]",
}];
const FORCE_SIZE_CALC: &str = "force_size_calc";

impl SizeField {
    /// The field that the options state.
    pub fn stated(options: &Options) -> Result<Option<SizeField>> {
        let words = [("current_size", SizeField::CurrentSize), ("chs", SizeField::Geometry)];
        options.choice(FORMAT_NAME, FORCE_SIZE_CALC, &words)
    }
}

/// How the sizes in a footer contradict each other, by more than rounding explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contradiction {
    /// The geometry is larger, and is used.
    LargerGeometry,
    /// The current size is used; QEMU uses the geometry.
    CurrentSize,
}

impl Contradiction {
    /// Adds it to the properties of the image.
    pub fn note_in(self, info: &mut ImageInfo) {
        match self {
            Contradiction::LargerGeometry => {
                info.warnings.push("the geometry is larger than the current size, the geometry is used".into());
            }
            Contradiction::CurrentSize => info.ambiguities.push(
                "geometry and current size contradict each other, the current size is used; QEMU uses the geometry"
                    .into(),
            ),
        }
    }
}

/// The disk size in bytes, and how the footer contradicts it. The image has `capacity` bytes for the disk.
pub(super) fn disk_size(footer: &Footer, capacity: u64, stated: Option<SizeField>) -> (u64, Option<Contradiction>) {
    let (current, geometry) = (footer.current_size, footer.geometry);
    let by_geometry = matches!(&footer.creator_app, b"vpc " | b"qemu");
    let bytes = geometry.bytes();
    if stated == Some(SizeField::CurrentSize) || geometry.sectors() == Geometry::MAX.sectors() {
        (current, None)
    } else if stated == Some(SizeField::Geometry) {
        (bytes, None)
    } else if !by_geometry || bytes == current {
        (current, None)
    } else if bytes < current && bytes > 0 && current - bytes < geometry.cylinder_sectors() * SECTOR {
        (bytes, None)
    } else if bytes > current && bytes <= capacity {
        (bytes, Some(Contradiction::LargerGeometry))
    } else {
        (current, Some(Contradiction::CurrentSize))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The algorithm of the document, step by step.
    #[allow(clippy::manual_div_ceil, reason = "as in the document")]
    fn by_the_document(total: u64) -> (u64, u64, u64) {
        let mut total_sectors = total;
        if total_sectors > 65535 * 16 * 255 {
            total_sectors = 65535 * 16 * 255;
        }
        let (mut sectors_per_track, mut heads, mut cylinder_times_heads);
        if total_sectors >= 65535 * 16 * 63 {
            sectors_per_track = 255;
            heads = 16;
            cylinder_times_heads = total_sectors / sectors_per_track;
        } else {
            sectors_per_track = 17;
            cylinder_times_heads = total_sectors / sectors_per_track;
            heads = (cylinder_times_heads + 1023) / 1024;
            if heads < 4 {
                heads = 4;
            }
            if cylinder_times_heads >= heads * 1024 || heads > 16 {
                sectors_per_track = 31;
                heads = 16;
                cylinder_times_heads = total_sectors / sectors_per_track;
            }
            if cylinder_times_heads >= heads * 1024 {
                sectors_per_track = 63;
                heads = 16;
                cylinder_times_heads = total_sectors / sectors_per_track;
            }
        }
        (cylinder_times_heads / heads, heads, sectors_per_track)
    }

    fn numbers(geometry: Geometry) -> (u64, u64, u64) {
        (geometry.cylinders.into(), geometry.heads.into(), geometry.sectors_per_track.into())
    }

    #[test]
    fn sizes_match_qemu() {
        for (gib, rounded) in [
            (1, 1_073_995_776),
            (10, 10_737_893_376),
            (20, 21_475_270_656),
            (30, 32_212_647_936),
            (64, 68_720_517_120),
            (100, 107_374_632_960),
            (127, 136_365_219_840),
            (128, 128 << 30),
            (2040, 2040 << 30),
        ] {
            let geometry = Geometry::enclosing(gib << 21);
            assert_eq!(geometry.map_or(gib << 30, Geometry::bytes), rounded, "{gib} GiB");
        }
        assert_eq!(Geometry::enclosing(0).map(Geometry::bytes), Some(0));
        assert_eq!(Geometry::enclosing(1).map(Geometry::bytes), Some(4 * 17 * 512));
        // As in qemu, although a disk of this size has a geometry of 115754496 bytes.
        assert_eq!(Geometry::enclosing(226_084).map(Geometry::bytes), Some(115_802_112));
        assert_eq!(numbers(Geometry::from_sectors(u64::MAX)), (65535, 16, 255));
        assert_eq!(Geometry::from_sectors(u64::MAX), Geometry::MAX);
    }

    #[test]
    fn geometries_change_at_the_sizes_of_the_document() {
        for edge in [17 * 4 * 1024, 17 * 16 * 1024, 31 * 16 * 1024, 65535 * 16 * 63, 65535 * 16 * 255] {
            for sectors in [edge - 1, edge, edge + 1] {
                assert_eq!(numbers(Geometry::from_sectors(sectors)), by_the_document(sectors), "{sectors}");
            }
        }
        let max = Geometry::MAX.sectors();
        assert_eq!((Geometry::enclosing(max), Geometry::enclosing(max + 1)), (Some(Geometry::MAX), None));
    }

    proptest! {
        #[test]
        fn geometries_match_the_document(sectors in prop_oneof![
            0u64..300_000,
            200_000u64..2_000_000,
            65535 * 16 * 63 - 5000..65535u64 * 16 * 63 + 5000,
            0u64..300_000_000,
            any::<u64>(),
        ]) {
            prop_assert_eq!(numbers(Geometry::from_sectors(sectors)), by_the_document(sectors));
        }

        #[test]
        fn rounding_up_is_idempotent(sectors in prop_oneof![0u64..300_000, 0u64..300_000_000]) {
            let Some(geometry) = Geometry::enclosing(sectors) else {
                prop_assert!(sectors > Geometry::MAX.sectors());
                return Ok(());
            };
            prop_assert!(geometry.sectors() >= sectors && geometry.sectors() - sectors <= 2 * 16 * 255);
            prop_assert_eq!(Geometry::enclosing(geometry.sectors()).map(Geometry::sectors), Some(geometry.sectors()));
        }
    }

    #[test]
    fn another_size_in_qemu_is_an_ambiguity() {
        let geometry = |cylinders, heads, sectors_per_track| Geometry { cylinders, heads, sectors_per_track };
        let mib = Geometry::from_sectors(2048);
        let size: u64 = 136_365_211_648;
        for (app, geometry, current_size, ambiguous) in [
            (b"vpc ", geometry(65278, 16, 255), 1 << 20, true),
            (b"qemu", geometry(65278, 16, 255), 1 << 20, true),
            (b"vpc ", geometry(0, 0, 0), 1 << 20, true),
            (b"vpc ", geometry(mib.cylinders / 2, mib.heads, mib.sectors_per_track), 1 << 20, true),
            (b"win ", geometry(0, 0, 0), 1 << 20, false),
            (b"qem2", geometry(65278, 16, 255), 1 << 20, false),
            // Rounded down, as Virtual PC does, and not rounded.
            (b"vpc ", mib, 1 << 20, false),
            (b"qemu", mib, mib.bytes(), false),
            (b"vpc ", Geometry::from_sectors(size / SECTOR), size, false),
            // The largest geometry says nothing, whatever its factors are.
            (b"vpc ", Geometry::MAX, 1 << 20, false),
            (b"vpc ", geometry(65535, 255, 16), 1 << 20, false),
        ] {
            let footer = Footer { creator_app: *app, geometry, current_size, ..Footer::for_tests() };
            let (_, contradiction) = disk_size(&footer, current_size, None);
            let mut info = ImageInfo::default();
            contradiction.into_iter().for_each(|contradiction| contradiction.note_in(&mut info));
            assert_eq!((info.ambiguities.len(), info.warnings.len()), (ambiguous.into(), 0), "{app:?} {geometry:?}");
        }
    }

    #[test]
    fn the_creator_selects_the_size_unless_data_would_be_lost() {
        use Contradiction::{CurrentSize, LargerGeometry};

        let footer = |app: &[u8; 4], geometry, current_size| Footer {
            creator_app: *app,
            geometry,
            current_size,
            ..Footer::for_tests()
        };
        let size_of = |app, geometry, current| disk_size(&footer(app, geometry, current), u64::MAX, None);
        // 127 GiB, the default of Virtual PC.
        let size: u64 = 136_365_211_648;
        let geometry = Geometry::from_sectors(size / SECTOR);
        assert_eq!(numbers(geometry), (65278, 16, 255));
        for (app, expected) in
            [(b"vpc ", geometry.bytes()), (b"qemu", geometry.bytes()), (b"win ", size), (b"abcd", size)]
        {
            assert_eq!(size_of(app, geometry, size), (expected, None));
        }
        assert_eq!(size_of(b"vpc ", Geometry::MAX, 200 << 30), (200 << 30, None));
        assert_eq!(size_of(b"vpc ", Geometry::MAX, 1 << 30), (1 << 30, None));
        // Rounding takes less than a cylinder.
        let cylinder = geometry.cylinder_sectors() * SECTOR;
        let rounded = geometry.bytes() + cylinder - SECTOR;
        assert_eq!(size_of(b"vpc ", geometry, rounded), (geometry.bytes(), None));
        assert_eq!(size_of(b"vpc ", geometry, rounded + SECTOR), (rounded + SECTOR, Some(CurrentSize)));
        // A smaller geometry that rounding does not explain.
        assert_eq!(size_of(b"vpc ", Geometry::from_sectors(2048), 4 << 20), (4 << 20, Some(CurrentSize)));
        assert_eq!(size_of(b"vpc ", Geometry { cylinders: 0, ..geometry }, 512), (512, Some(CurrentSize)));
        assert_eq!(size_of(b"win ", Geometry::from_sectors(2048), 4 << 20), (4 << 20, None));
        // A larger geometry, with and without data for it.
        let large = Geometry::from_sectors(8160);
        assert_eq!(size_of(b"vpc ", large, 1 << 20), (large.bytes(), Some(LargerGeometry)));
        for (capacity, expected) in
            [(large.bytes(), (large.bytes(), Some(LargerGeometry))), (large.bytes() - 1, (1 << 20, Some(CurrentSize)))]
        {
            assert_eq!(disk_size(&footer(b"vpc ", large, 1 << 20), capacity, None), expected);
        }
        // The caller knows.
        for (app, stated, expected) in
            [(b"vpc ", SizeField::CurrentSize, 1 << 20), (b"win ", SizeField::Geometry, large.bytes())]
        {
            assert_eq!(disk_size(&footer(app, large, 1 << 20), 1 << 20, Some(stated)), (expected, None));
        }
        let largest = footer(b"win ", Geometry::MAX, 200 << 30);
        assert_eq!(disk_size(&largest, u64::MAX, Some(SizeField::Geometry)), (200 << 30, None));
    }
}
