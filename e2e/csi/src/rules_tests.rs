use super::*;
use crate::wire::{BlockVolume, MountVolume};
use tonic::Code;

fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

fn mount(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

#[test]
fn ids_are_the_names_and_nothing_else_passes_for_one() {
    let one = id(Kind::Volume, "pvc-amber");
    assert_eq!(one, id(Kind::Volume, "pvc-amber"));
    assert_ne!(one, id(Kind::Volume, "pvc-beryl"));
    assert!(is_id(Kind::Volume, &one));
    assert!(is_id(Kind::Snapshot, &id(Kind::Snapshot, "pvc-amber")));
    for other in
        ["", "vol-", "vol-../../../etc", "vol-00000000000G", "snap-0123456789ab", "vol-0123456789abc"]
    {
        assert!(!is_id(Kind::Volume, other), "{other}");
    }
}

#[test]
fn sizes_are_rounded_up_and_bounded() {
    assert_eq!(size(range(1, 0).as_ref(), None).unwrap(), SMALLEST);
    assert_eq!(size(range((1 << 30) + 1, 0).as_ref(), None).unwrap(), (1 << 30) + UNIT);
    assert_eq!(size(None, None).unwrap(), 1 << 30);
    assert_eq!(size(range(0, 400 << 20).as_ref(), None).unwrap(), 400 << 20);
    // A limit below the smallest, or one that rounding exceeds, cannot be kept.
    assert_eq!(code(size(range(0, 200 << 20).as_ref(), None)), Code::OutOfRange);
    assert_eq!(code(size(range((1 << 30) + 1, (1 << 30) + 2).as_ref(), None)), Code::OutOfRange);
    assert_eq!(code(size(range(LARGEST + 1, 0).as_ref(), None)), Code::OutOfRange);
    assert_eq!(code(size(range(i64::MAX, 0).as_ref(), None)), Code::OutOfRange);
    assert_eq!(code(size(range(-1, 0).as_ref(), None)), Code::InvalidArgument);
    assert_eq!(code(size(range(5, 4).as_ref(), None)), Code::InvalidArgument);
}

#[test]
fn a_copy_is_as_large_as_its_source_or_larger() {
    assert_eq!(size(None, Some(2 << 30)).unwrap(), 2 << 30);
    assert_eq!(size(range(3 << 30, 0).as_ref(), Some(2 << 30)).unwrap(), 3 << 30);
    assert_eq!(code(size(range(1 << 30, 0).as_ref(), Some(2 << 30))), Code::OutOfRange);
    // The claim of the source and that of the copy ask for the same, and both were rounded.
    assert_eq!(size(range(1, 0).as_ref(), Some(SMALLEST)).unwrap(), SMALLEST);
}

#[test]
fn volumes_grow_and_never_shrink() {
    assert_eq!(grown(range(2 << 30, 0).as_ref(), 1 << 30).unwrap(), 2 << 30);
    assert_eq!(grown(range(1, 0).as_ref(), 1 << 30).unwrap(), 1 << 30);
    assert_eq!(code(grown(None, 1 << 30)), Code::InvalidArgument);
    assert_eq!(code(grown(range(0, 500 << 20).as_ref(), 1 << 30)), Code::OutOfRange);
    assert!(fits(range(1 << 30, 0).as_ref(), 2 << 30).unwrap());
    assert!(!fits(range(1 << 30, 1 << 30).as_ref(), 2 << 30).unwrap());
    assert!(!fits(range(3 << 30, 0).as_ref(), 2 << 30).unwrap());
}

#[test]
fn a_parameter_that_means_nothing_is_refused() {
    let of = |pairs: &[(&str, &str)]| {
        let all = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        class(&own_parameters(&all))
    };
    let all = of(&[
        ("zonal", "true"),
        ("access", "shared"),
        ("clones", "false"),
        ("writeBytesPerSecond", "5"),
        ("csi.storage.k8s.io/fstype", "xfs"),
    ]);
    assert_eq!(all.unwrap(), Class { zonal: true, shared: true, uncloned: true, write: 5, read: 0 });
    for wrong in [("zonal", "yes"), ("access", "private"), ("readBytesPerSecond", "1M"), ("writeBytes", "1")]
    {
        assert_eq!(code(of(&[wrong])), Code::InvalidArgument, "{wrong:?}");
    }
}

#[test]
fn only_shared_volumes_are_for_several_nodes() {
    let shared = Class { shared: true, ..Class::default() };
    for mode in [Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter] {
        assert_eq!(code(usable(&Class::default(), Some(&mount(mode)))), Code::InvalidArgument);
        assert_eq!(usable(&shared, Some(&mount(mode))).unwrap().mode, mode);
    }
    for mode in [Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter, Mode::SingleNodeMultiWriter] {
        assert!(usable(&Class::default(), Some(&mount(mode))).is_ok());
    }
    let mut other = mount(Mode::SingleNodeWriter);
    other.access_type = Some(AccessType::Block(BlockVolume {}));
    assert_eq!(code(usable(&shared, Some(&other))), Code::InvalidArgument);
    other.access_type =
        Some(AccessType::Mount(MountVolume { fs_type: "ext4".into(), ..MountVolume::default() }));
    assert_eq!(code(usable(&shared, Some(&other))), Code::InvalidArgument);
    assert_eq!(code(usable(&shared, Some(&mount(Mode::Unknown)))), Code::InvalidArgument);
    assert_eq!(code(all_usable(&shared, &[])), Code::InvalidArgument);
}

#[test]
fn zonal_volumes_go_where_the_pod_goes_and_copies_stay_with_their_source() {
    let zonal = Class { zonal: true, ..Class::default() };
    let places = |names: &[&str]| names.iter().map(|name| place(name)).collect::<Vec<_>>();
    let asked =
        TopologyRequirement { requisite: places(&["west", "east"]), preferred: places(&["east", "west"]) };
    assert_eq!(zone(&Class::default(), Some(&asked), None, Some("west")).unwrap(), None);
    assert_eq!(zone(&zonal, Some(&asked), None, None).unwrap().as_deref(), Some("east"));
    let required = TopologyRequirement { preferred: Vec::new(), ..asked.clone() };
    assert_eq!(zone(&zonal, Some(&required), None, None).unwrap().as_deref(), Some("west"));
    assert_eq!(zone(&zonal, None, Some("north"), None).unwrap().as_deref(), Some("north"));
    assert_eq!(code(zone(&zonal, Some(&asked), None, Some("west"))), Code::ResourceExhausted);
    assert_eq!(zone(&zonal, Some(&asked), None, Some("east")).unwrap().as_deref(), Some("east"));
    assert_eq!(code(zone(&zonal, None, None, None)), Code::InvalidArgument);
}

#[test]
fn pages_end_and_survive_what_is_deleted_in_between() {
    let mut all: Vec<(String, ())> = (0..5).map(|n| (id(Kind::Volume, &format!("agate-{n}")), ())).collect();
    all.sort();
    let (first, token) = page(Kind::Volume, all.clone(), 2, "").unwrap();
    assert_eq!(first, all[..2]);
    // The token's own volume is deleted before the next page.
    let without: Vec<_> = all.iter().filter(|(id, ())| *id != token).cloned().collect();
    let (second, token) = page(Kind::Volume, without, 2, &token).unwrap();
    assert_eq!(second, all[2..4]);
    let (third, token) = page(Kind::Volume, all.clone(), 2, &token).unwrap();
    assert_eq!((third, token), (all[4..].to_vec(), String::new()));
    assert_eq!(page(Kind::Volume, all.clone(), 0, "").unwrap().0, all);
    assert_eq!(code(page(Kind::Volume, all.clone(), -1, "")), Code::InvalidArgument);
    assert_eq!(code(page(Kind::Volume, all, 1, "nonsense")), Code::Aborted);
}
