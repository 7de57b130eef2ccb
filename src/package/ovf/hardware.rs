//! The disks in the order in which the machine has them.

use std::collections::HashMap;

use roxmltree::Node;

use super::in_sections;

/// The type of a hard disk (DMTF CIM_ResourceAllocationSettingData, ResourceType).
const DISK: &str = "17";

/// Identifiers of the disks of all machines, and whether each is that of a file: by machine, by the position of its controller among
/// the items, and by its address there.
pub(super) fn disks<'a>(root: Node<'a, '_>) -> Vec<(&'a str, bool)> {
    let mut items: Vec<Node<'a, '_>> = in_sections(root, "VirtualHardwareSection", "Item")
        .chain(in_sections(root, "VirtualHardwareSection", "StorageItem"))
        .collect();
    items.sort_by_key(|item| item.range().start);
    // A second section with the same identifiers is of another machine, which follows.
    let section = |item: Node<'a, '_>| item.parent().map_or(0, |section| section.range().start);
    let ids: HashMap<_, _> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| Some(((section(*item), child(*item, "InstanceID")?), index)))
        .collect();
    let mut disks: Vec<_> = items
        .iter()
        .filter(|item| child(**item, "ResourceType") == Some(DISK))
        .filter_map(|item| {
            let (id, is_file) = resource(child(*item, "HostResource")?)?;
            let section = section(*item);
            let controller = child(*item, "Parent").and_then(|parent| ids.get(&(section, parent)));
            let address = child(*item, "AddressOnParent").and_then(|address| address.parse::<u32>().ok());
            let place = (section, controller.copied().unwrap_or(usize::MAX), address.unwrap_or(u32::MAX));
            Some((place, (id, is_file)))
        })
        .collect();
    disks.sort_by_key(|(place, _)| *place);
    disks.into_iter().map(|(_, disk)| disk).collect()
}

/// `ovf:/disk/ID` or `ovf:/file/ID`; older programs leave `ovf:` out.
fn resource(text: &str) -> Option<(&str, bool)> {
    let path = text.strip_prefix("ovf:").unwrap_or(text).trim_start_matches('/');
    match path.split_once('/')? {
        ("disk", id) => Some((id, false)),
        ("file", id) => Some((id, true)),
        _ => None,
    }
}

/// The text of a child element. Version 0.9 spells `InstanceId`.
fn child<'a>(item: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let child = item.children().find(|child| child.tag_name().name().eq_ignore_ascii_case(name))?;
    child.text().map(str::trim)
}
