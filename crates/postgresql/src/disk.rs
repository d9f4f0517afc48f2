//! When a volume is full, what is held back for that moment, and what is said about it.
//!
//! WAL and data share one volume, and PostgreSQL ends with a PANIC when its WAL finds no room. So writes are refused a little
//! earlier, and a *reserve file* keeps room that is given free when it happened all the same: for crash recovery, for a checkpoint
//! and for the session of whoever makes room.

use holdfast_core::report::VolumeStage;

const MIB: u64 = 1 << 20;
/// Least size of the reserve: on a volume of 1 GiB it holds back 7 %, and half of it is two segments of the usual size.
const LEAST: u64 = 64 * MIB;
/// Most: what recovery and a checkpoint need does not grow with the volume, and writes at more than 1 GB/s are what it takes to
/// get through half of this between two looks.
const MOST: u64 = 256 * MIB;
/// Of a volume's bytes the reserve is this part, between those two.
const PART: u64 = 50;
/// What initdb writes beside WAL: three databases of about 8 MB, catalogues, and as much again to work with.
const INITDB: u64 = 64 * MIB;

/// A volume as measured. Everything in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Size of the filesystem.
    pub capacity: u64,
    /// What the server may still write, the reserve file not counted.
    pub available: u64,
    /// Files in `pg_wal`.
    pub wal: u64,
    /// Size of a WAL segment.
    pub segment: u64,
}

impl Volume {
    /// How large the reserve file should be.
    pub fn reserve(&self) -> u64 {
        let wanted = (self.capacity / PART).clamp(LEAST, MOST).max(3 * self.segment);
        // A volume that is tiny beside its segments must not be full from the first day.
        wanted.min(self.capacity / 7)
    }

    /// Below this writes are refused: while the next WAL segment still fits, also on a volume that is tiny beside its segments.
    pub fn closes_below(&self) -> u64 {
        let reserve = self.reserve();
        (reserve / 2).max((self.segment + self.segment / 4).min(reserve / 4 * 3))
    }

    /// Below this the next WAL segment may be the one that finds no room.
    pub fn last(&self) -> u64 {
        (self.reserve() / 4).max(self.segment + self.segment / 4).min(self.closes_below())
    }

    /// Below this somebody should look.
    pub fn low(&self) -> u64 {
        (self.capacity / 10).max(3 * self.reserve())
    }

    /// What making a new data directory takes.
    pub fn initdb_needs(&self) -> u64 {
        INITDB + 2 * self.segment
    }

    /// What a copy of so many bytes of databases takes: they, WAL that is written meanwhile, and enough left to accept more.
    pub fn copy_needs(&self, databases: u64) -> u64 {
        databases + 3 * self.segment + self.reserve()
    }

    /// "12 MiB of 960 MiB are left (320 MiB of it WAL, 12 segments of which wait for the store)".
    ///
    /// `waiting`: segments that are not archived yet.
    pub fn words(&self, waiting: i64) -> String {
        let waits = match waiting {
            ..=0 => String::new(),
            1 => ", 1 segment of which waits for the store".into(),
            n => format!(", {n} segments of which wait for the store"),
        };
        let (available, capacity, wal) = (size(self.available), size(self.capacity), size(self.wal));
        format!("{available} of {capacity} are left ({wal} of it WAL{waits})")
    }
}

/// Bytes for people: MiB, and GiB from 10 GiB on.
pub fn size(bytes: u64) -> String {
    let mib = bytes / MIB;
    if mib < 10 * 1024 { format!("{mib} MiB") } else { format!("{} GiB", mib / 1024) }
}

/// What the next step rests on.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// The volume.
    pub volume: Volume,
    /// How it was. `Full`: writes are refused now.
    pub was: VolumeStage,
    /// Size of the reserve file.
    pub reserve: u64,
    /// The file cannot be made here, whatever room there is: its absence must not refuse writes for ever.
    pub impossible: bool,
    /// The server does not run: it died, or is about to be started.
    pub down: bool,
}

/// What becomes of the reserve file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Nothing.
    Keep,
    /// Remove it: its room is needed now.
    Release,
    /// Make it this large.
    Make(u64),
}

/// Decides. To be called again, with what was measured then, when the reserve changed.
pub fn decide(now: &Situation) -> (VolumeStage, Reserve) {
    let volume = &now.volume;
    let wanted = volume.reserve();
    if wanted == 0 {
        // Some network filesystems do not say how large they are: nothing can be told of them.
        return (VolumeStage::Ample, Reserve::Keep);
    }
    let whole = now.reserve >= wanted || now.impossible;
    let full = match now.was {
        // Refusing ends later than it begins, or writes would come and go with every segment that is recycled.
        VolumeStage::Full => !(whole && volume.available > wanted),
        _ => volume.available < volume.closes_below(),
    };
    let low = match now.was {
        VolumeStage::Low => volume.low() + volume.low() / 10,
        _ => volume.low(),
    };
    let stage = match (full, volume.available < low) {
        (true, _) => VolumeStage::Full,
        (false, true) => VolumeStage::Low,
        (false, false) => VolumeStage::Ample,
    };
    let urgent = volume.available < if now.down { volume.closes_below() } else { volume.last() };
    let missing = wanted.saturating_sub(now.reserve);
    let reserve = if now.reserve > 0 && urgent {
        Reserve::Release
    // Only when writes can be accepted beside it.
    } else if !whole && volume.available > missing + wanted + wanted / 4 {
        Reserve::Make(wanted)
    } else {
        Reserve::Keep
    };
    (stage, reserve)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn volume(capacity: u64, available: u64) -> Volume {
        Volume { capacity, available, wal: 0, segment: 16 * MIB }
    }

    fn situation(available: u64, was: VolumeStage, reserve: u64) -> Situation {
        let volume = volume(960 * MIB, available);
        Situation { volume, was, reserve, impossible: false, down: false }
    }

    #[test]
    fn thresholds_suit_a_test_volume_and_a_large_one() {
        let small = volume(960 * MIB, 0);
        assert_eq!([small.reserve(), small.closes_below(), small.last()], [64 * MIB, 32 * MIB, 20 * MIB]);
        assert_eq!(small.low(), 192 * MIB);
        let large = volume(1024 * GIB, 0);
        assert_eq!([large.reserve(), large.closes_below(), large.last()], [256 * MIB, 128 * MIB, 64 * MIB]);
        assert_eq!(large.low(), 1024 * GIB / 10);
        for capacity in [256 * MIB, 960 * MIB, 10 * GIB, 1024 * GIB] {
            for segment in [MIB, 16 * MIB, 64 * MIB, GIB] {
                let v = Volume { segment, ..volume(capacity, 0) };
                assert!(v.last() <= v.closes_below() && v.closes_below() < v.reserve(), "{v:?}");
                assert!(v.reserve() < v.low() && v.low() < capacity / 2, "{v:?}");
                assert!(capacity < 8 * segment || v.closes_below() > segment, "{v:?}");
            }
        }
    }

    #[test]
    fn writes_are_refused_before_the_last_segment_and_accepted_again_only_with_the_reserve_whole() {
        use VolumeStage::{Ample, Full, Low};
        let stage = |available, was, reserve| decide(&situation(available * MIB, was, reserve * MIB)).0;
        assert_eq!(stage(500, Ample, 64), Ample);
        assert_eq!(stage(191, Ample, 64), Low);
        assert_eq!(stage(200, Low, 64), Low, "no flapping");
        assert_eq!(stage(212, Low, 64), Ample);
        assert_eq!(stage(33, Low, 64), Low);
        assert_eq!(stage(31, Low, 64), Full);
        assert_eq!(stage(60, Full, 64), Full, "no flapping");
        assert_eq!(stage(65, Full, 64), Low);
        assert_eq!(stage(130, Full, 0), Full, "room without a reserve is no room");
        let impossible = Situation { impossible: true, ..situation(130 * MIB, Full, 0) };
        assert_eq!(decide(&impossible).0, Low);
    }

    #[test]
    fn the_reserve_goes_when_it_is_needed_and_comes_back_when_writes_fit_beside_it() {
        use VolumeStage::{Ample, Full, Low};
        let reserve = |available, was, reserve| decide(&situation(available * MIB, was, reserve * MIB)).1;
        assert_eq!(reserve(25, Full, 64), Reserve::Keep);
        assert_eq!(reserve(19, Full, 64), Reserve::Release);
        assert_eq!(reserve(19, Full, 0), Reserve::Keep);
        let down = Situation { down: true, ..situation(25 * MIB, Low, 64 * MIB) };
        assert_eq!(decide(&down), (Full, Reserve::Release), "a start begins with recovery");
        let calm = Situation { down: true, ..situation(500 * MIB, Ample, 64 * MIB) };
        assert_eq!(decide(&calm), (Ample, Reserve::Keep));
        assert_eq!(reserve(140, Full, 0), Reserve::Keep);
        assert_eq!(reserve(145, Full, 0), Reserve::Make(64 * MIB));
        assert_eq!(reserve(145 - 64, Full, 64), Reserve::Keep);
        assert_eq!(stage_after_making(145), Low);
        assert_eq!(
            reserve(500, Ample, 20),
            Reserve::Make(64 * MIB),
            "the volume grew, or the making was cut short"
        );
    }

    fn stage_after_making(available: u64) -> VolumeStage {
        decide(&situation((available - 64) * MIB, VolumeStage::Full, 64 * MIB)).0
    }

    #[test]
    fn a_volume_that_does_not_say_its_size_is_never_full() {
        let unknown = Situation {
            volume: volume(0, 0),
            was: VolumeStage::Full,
            reserve: 0,
            impossible: false,
            down: true,
        };
        assert_eq!(decide(&unknown), (VolumeStage::Ample, Reserve::Keep));
    }

    #[test]
    fn numbers_are_for_people() {
        let full = Volume { wal: 320 * MIB, ..volume(960 * MIB, 12 * MIB + 5) };
        assert_eq!(full.words(0), "12 MiB of 960 MiB are left (320 MiB of it WAL)");
        assert!(full.words(12).ends_with("(320 MiB of it WAL, 12 segments of which wait for the store)"));
        assert!(full.words(1).contains("1 segment of which waits"));
        assert_eq!(size(9 * GIB), "9216 MiB");
        assert_eq!(size(1024 * GIB), "1024 GiB");
    }

    #[test]
    fn a_copy_leaves_enough_to_go_on() {
        let v = volume(960 * MIB, 400 * MIB);
        assert_eq!(v.copy_needs(200 * MIB), (200 + 48 + 64) * MIB);
        assert!(v.initdb_needs() < v.available);
    }
}
