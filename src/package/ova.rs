//! The descriptor and the manifest of a new OVA.

use std::fmt::Write as _;

use super::manifest::{Algorithm, Hasher, Hex};
use super::tar::{BLOCK, encode_end, encode_header};
use crate::error::Result;
use crate::options::{OptionSpec, Options, parse_size, wrong};

/// Name of the format.
pub(crate) const FORMAT_NAME: &str = "ova";

pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec { name: "name", values: "TEXT", help: "name of the virtual machine (default: that of the file)" },
    OptionSpec { name: "cpus", values: "1..768", help: "number of virtual CPUs (default 2)" },
    OptionSpec { name: "memory", values: "SIZE", help: "memory, in whole MiB (default 2G)" },
    OptionSpec { name: "firmware", values: "bios|efi", help: "firmware (default bios)" },
    OptionSpec {
        name: "controller",
        values: "lsilogic|lsilogicsas|pvscsi|buslogic|sata|ide",
        help: "controller of the disks (default lsilogic)",
    },
    OptionSpec { name: "nic", values: "e1000|e1000e|vmxnet3|none", help: "network adapter (default e1000)" },
    OptionSpec {
        name: "guest_os",
        values: "TEXT",
        help: "identifier of VMware for the guest system, such as ubuntu64Guest (default otherGuest64)",
    },
    OptionSpec {
        name: "hwversion",
        values: "4..99",
        help: "virtual hardware version (default 13, which ESXi 6.5 runs); up to 12 the digests are SHA1, for old versions",
    },
    OptionSpec {
        name: "compression_level",
        values: "1..9",
        help: "compression level of the disks, from fastest to smallest (default 5)",
    },
];

/// The settings of a virtual machine.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Name of the virtual machine.
    name: String,
    /// The beginning of the names of all files: letters, digits and `._-`.
    stem: String,
    cpus: u64,
    /// Memory in MiB.
    memory: u64,
    efi: bool,
    controller: &'static Controller,
    nic: Option<&'static str>,
    guest_os: String,
    hwversion: u64,
}

#[derive(Debug)]
struct Controller {
    name: &'static str,
    /// ResourceType and ResourceSubType of DSP0243, as VMware and VirtualBox name them.
    kind: u32,
    subtype: &'static str,
    /// `adapter_type` of a VMDK.
    adapter: &'static str,
    /// Largest number of disks.
    most: usize,
}

static CONTROLLERS: [Controller; 6] = [
    Controller { name: "lsilogic", kind: 6, subtype: "lsilogic", adapter: "lsilogic", most: 15 },
    Controller { name: "lsilogicsas", kind: 6, subtype: "lsilogicsas", adapter: "lsilogic", most: 15 },
    Controller { name: "pvscsi", kind: 6, subtype: "VirtualSCSI", adapter: "lsilogic", most: 15 },
    Controller { name: "buslogic", kind: 6, subtype: "buslogic", adapter: "buslogic", most: 15 },
    Controller { name: "sata", kind: 20, subtype: "vmware.sata.ahci", adapter: "lsilogic", most: 30 },
    Controller { name: "ide", kind: 5, subtype: "", adapter: "ide", most: 4 },
];

/// Name in options, and ResourceSubType.
const NICS: [(&str, Option<&str>); 4] =
    [("e1000", Some("E1000")), ("e1000e", Some("E1000e")), ("vmxnet3", Some("VmxNet3")), ("none", None)];

/// A disk in the descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    /// Virtual size in bytes.
    pub capacity: u64,
    /// Length of its file in bytes.
    pub size: u64,
    /// Bytes of data.
    pub populated: u64,
}

impl Settings {
    /// Parses the options for a package of `disks` disks in a file whose name without the extension is `stem`.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option)
    pub fn parse(options: &Options, stem: &str, disks: usize) -> Result<Settings> {
        options.check(FORMAT_NAME, OPTIONS)?;
        let number =
            |name, range, default| options.number(FORMAT_NAME, name, range).map(|value| value.unwrap_or(default));
        let memory = match options.value("memory") {
            None => 2048,
            Some(text) => match parse_size(text) {
                Ok(size) if size.is_multiple_of(1 << 20) && size > 0 => size >> 20,
                _ => {
                    return Err(wrong(
                        FORMAT_NAME,
                        "memory",
                        format!("invalid value {text:?}: expected a size in whole MiB"),
                    ));
                }
            },
        };
        let efi = match options.value("firmware") {
            None | Some("bios") => false,
            Some("efi") => true,
            Some(other) => {
                return Err(wrong(FORMAT_NAME, "firmware", format!("invalid value {other:?}: expected bios or efi")));
            }
        };
        let wanted = options.value("controller").unwrap_or("lsilogic");
        let controller = CONTROLLERS.iter().find(|controller| controller.name == wanted).ok_or_else(|| {
            let names: Vec<_> = CONTROLLERS.iter().map(|controller| controller.name).collect();
            wrong(FORMAT_NAME, "controller", format!("invalid value {wanted:?}: expected one of {}", names.join(", ")))
        })?;
        if disks > controller.most {
            let problem = format!("{disks} disks, expected at most {} with {wanted}", controller.most);
            return Err(wrong(FORMAT_NAME, "controller", problem));
        }
        let wanted = options.value("nic").unwrap_or("e1000");
        let nic = NICS.iter().find(|(name, _)| *name == wanted).ok_or_else(|| {
            let names: Vec<_> = NICS.iter().map(|(name, _)| *name).collect();
            wrong(FORMAT_NAME, "nic", format!("invalid value {wanted:?}: expected one of {}", names.join(", ")))
        })?;
        let name = options.value("name").unwrap_or(stem);
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
        let stem: String = stem.chars().map(plain).take(60).collect();
        let stem = stem.trim_matches('.');
        Ok(Settings {
            name: if name.is_empty() { "vm" } else { name }.chars().take(200).collect(),
            stem: if stem.is_empty() { "vm" } else { stem }.to_owned(),
            cpus: number("cpus", 1..=768, 2)?,
            memory,
            efi,
            controller,
            nic: nic.1,
            guest_os: options.value("guest_os").unwrap_or("otherGuest64").chars().take(100).collect(),
            hwversion: number("hwversion", 4..=99, 13)?,
        })
    }

    /// Options of the VMDK of a disk.
    pub fn disk_options(&self, options: &Options) -> Options {
        let mut own = Options::new();
        own.set("subformat", "streamOptimized");
        own.set("adapter_type", self.controller.adapter);
        if let Some(level) = options.value("compression_level") {
            own.set("compression_level", level);
        }
        own
    }

    /// The name of the descriptor.
    pub fn descriptor_name(&self) -> String {
        format!("{}.ovf", self.stem)
    }

    /// The name of the manifest.
    pub fn manifest_name(&self) -> String {
        format!("{}.mf", self.stem)
    }

    /// The name of the file of disk `index`.
    pub fn disk_name(&self, index: usize) -> String {
        format!("{}-disk{}.vmdk", self.stem, index + 1)
    }

    fn algorithm(&self) -> Algorithm {
        if self.hwversion <= 12 { Algorithm::Sha1 } else { Algorithm::Sha256 }
    }

    /// A digest for the manifest.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm())
    }

    /// Length in bytes of the descriptor, whatever the sizes are: whole blocks.
    pub fn descriptor_len(&self, disks: usize) -> u64 {
        let largest = Disk { capacity: u64::MAX, size: u64::MAX, populated: u64::MAX };
        (self.text(&vec![largest; disks]).len() as u64 + 1).next_multiple_of(BLOCK)
    }

    /// The descriptor, with blanks at its end.
    pub fn descriptor(&self, disks: &[Disk]) -> Vec<u8> {
        let mut text = self.text(disks).into_bytes();
        text.resize((self.descriptor_len(disks.len()) as usize).max(text.len() + 1) - 1, b' ');
        text.push(b'\n');
        text
    }

    /// The manifest: digests of the files in their order.
    pub fn manifest(&self, digests: &[(String, Vec<u8>)]) -> Vec<u8> {
        let algorithm = self.algorithm().name();
        let lines = digests.iter().map(|(name, digest)| format!("{algorithm}({name})= {}\n", Hex(digest)));
        lines.collect::<String>().into_bytes()
    }

    /// The envelope of DSP0243 1.1.1: each section in its order, and the children of an item in that of their names.
    fn text(&self, disks: &[Disk]) -> String {
        let mut text = String::from(ENVELOPE);
        let name = escaped(&self.name);
        text.push_str("  <References>\n");
        for (index, disk) in disks.iter().enumerate() {
            let (href, number) = (self.disk_name(index), index + 1);
            line(&mut text, 2, &format!(r#"<File ovf:href="{href}" ovf:id="file{number}" ovf:size="{}"/>"#, disk.size));
        }
        text.push_str("  </References>\n  <DiskSection>\n    <Info>Virtual disks</Info>\n");
        for (index, disk) in disks.iter().enumerate() {
            let (number, Disk { capacity, populated, .. }) = (index + 1, disk);
            line(
                &mut text,
                2,
                &format!(
                    r#"<Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk{number}" ovf:fileRef="file{number}" ovf:format="{STREAM_OPTIMIZED}" ovf:populatedSize="{populated}"/>"#
                ),
            );
        }
        text.push_str("  </DiskSection>\n");
        if self.nic.is_some() {
            text.push_str(NETWORKS);
        }
        let guest = escaped(&self.guest_os);
        let id = system_id(&self.guest_os);
        line(&mut text, 1, &format!(r#"<VirtualSystem ovf:id="{name}">"#));
        line(&mut text, 2, "<Info>A virtual machine</Info>");
        line(&mut text, 2, &format!("<Name>{name}</Name>"));
        line(&mut text, 2, &format!(r#"<OperatingSystemSection ovf:id="{id}" vmw:osType="{guest}">"#));
        line(&mut text, 3, "<Info>The guest operating system</Info>");
        line(&mut text, 2, "</OperatingSystemSection>");
        line(&mut text, 2, "<VirtualHardwareSection>");
        line(&mut text, 3, "<Info>Virtual hardware requirements</Info>");
        line(&mut text, 3, "<System>");
        line(&mut text, 4, "<vssd:ElementName>Virtual Hardware Family</vssd:ElementName>");
        line(&mut text, 4, "<vssd:InstanceID>0</vssd:InstanceID>");
        line(&mut text, 4, &format!("<vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>"));
        line(&mut text, 4, &format!("<vssd:VirtualSystemType>vmx-{:02}</vssd:VirtualSystemType>", self.hwversion));
        line(&mut text, 3, "</System>");
        self.items(&mut text, disks.len());
        if self.efi {
            line(&mut text, 3, r#"<vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>"#);
        }
        line(&mut text, 2, "</VirtualHardwareSection>");
        text.push_str("  </VirtualSystem>\n</Envelope>\n");
        text
    }

    fn items(&self, text: &mut String, disks: usize) {
        let mut id = 0;
        let mut item = |fields: &[(&str, &str)]| {
            id += 1;
            let id_text = id.to_string();
            let mut fields = fields.to_vec();
            fields.push(("InstanceID", &id_text));
            fields.sort_by_key(|(name, _)| *name);
            line(text, 3, "<Item>");
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
                line(text, 4, &format!("<rasd:{name}>{value}</rasd:{name}>"));
            }
            line(text, 3, "</Item>");
            id
        };
        let (cpus, memory, kind) = (self.cpus.to_string(), self.memory.to_string(), self.controller.kind.to_string());
        item(&[
            ("AllocationUnits", "hertz * 10^6"),
            ("Description", "Number of virtual CPUs"),
            ("ElementName", &format!("{cpus} virtual CPU(s)")),
            ("ResourceType", "3"),
            ("VirtualQuantity", &cpus),
        ]);
        item(&[
            ("AllocationUnits", "byte * 2^20"),
            ("Description", "Memory size"),
            ("ElementName", &format!("{memory} MB of memory")),
            ("ResourceType", "4"),
            ("VirtualQuantity", &memory),
        ]);
        let is_ide = self.controller.kind == 5;
        let controllers: Vec<u32> = (0..if is_ide { 2 } else { 1 })
            .map(|address| {
                item(&[
                    ("Address", &address.to_string()),
                    ("Description", "Disk controller"),
                    ("ElementName", &format!("Disk controller {address}")),
                    ("ResourceSubType", self.controller.subtype),
                    ("ResourceType", &kind),
                ])
            })
            .collect();
        for index in 0..disks {
            let number = index + 1;
            let (controller, address) = match self.controller.kind {
                5 => (index / 2, index % 2),
                // The controller itself has the address 7.
                6 => (0, index + usize::from(index >= 7)),
                _ => (0, index),
            };
            let parent = controllers.get(controller).copied().unwrap_or_default();
            item(&[
                ("AddressOnParent", &address.to_string()),
                ("ElementName", &format!("Hard disk {number}")),
                ("HostResource", &format!("ovf:/disk/vmdisk{number}")),
                ("Parent", &parent.to_string()),
                ("ResourceType", "17"),
            ]);
        }
        if let Some(nic) = self.nic {
            item(&[
                ("AddressOnParent", "0"),
                ("AutomaticAllocation", "true"),
                ("Connection", "VM Network"),
                ("ElementName", "Network adapter 1"),
                ("ResourceSubType", nic),
                ("ResourceType", "10"),
            ]);
        }
    }
}

const STREAM_OPTIMIZED: &str = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized";
const ENVELOPE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:vmw="http://www.vmware.com/schema/ovf"
    xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
"#;
const NETWORKS: &str = r#"  <NetworkSection>
    <Info>Logical networks</Info>
    <Network ovf:name="VM Network">
      <Description>The network of the virtual machine</Description>
    </Network>
  </NetworkSection>
"#;

fn line(text: &mut String, depth: usize, content: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:width$}{content}", "", width = 2 * depth);
}

/// The number of CIM_OperatingSystem.OsType: 101 and 36 are Linux, 102 and 1 anything else, of 64 and 32 bits.
fn system_id(guest_os: &str) -> u32 {
    let lower = guest_os.to_ascii_lowercase();
    let is_linux = ["linux", "ubuntu", "debian", "centos", "rhel", "fedora", "sles", "photon"]
        .iter()
        .any(|name| lower.contains(name));
    match (is_linux, lower.contains("64")) {
        (true, true) => 101,
        (true, false) => 36,
        (false, true) => 102,
        (false, false) => 1,
    }
}

/// The text in XML, without characters that XML does not have.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars().filter(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The parts of an archive.
pub(crate) fn header(name: &str, size: u64, time: u64) -> [u8; BLOCK as usize] {
    encode_header(name, size, time)
}

/// Length in bytes of a header, and alignment of the data.
pub(crate) const ALIGNMENT: u64 = BLOCK;

/// The end of an archive.
pub(crate) fn end() -> Vec<u8> {
    encode_end().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::package::ovf::Envelope;

    fn settings(list: &str, stem: &str, disks: usize) -> Result<Settings> {
        let mut options = Options::new();
        options.add_list(list);
        Settings::parse(&options, stem, disks)
    }

    #[test]
    fn wrong_options_are_refused() {
        for list in [
            "memory=1",
            "memory=0",
            "memory=x",
            "cpus=0",
            "firmware=uefi",
            "controller=nvme",
            "nic=rtl8139",
            "hwversion=3",
            "x=1",
        ] {
            assert!(settings(list, "vm", 1).is_err(), "{list}");
        }
        assert!(settings("controller=ide", "vm", 4).is_ok() && settings("controller=ide", "vm", 5).is_err());
    }

    #[test]
    fn names_of_files_are_plain() {
        for (stem, plain) in [("vm", "vm"), ("a b/..ä", "a_b_.._"), ("", "vm"), ("..", "vm")] {
            assert_eq!(settings("", stem, 1).unwrap().stem, plain);
        }
    }

    /// The resource type of each item; of disks also the parent and the address there.
    #[test]
    fn disks_are_at_the_addresses_of_their_controllers() {
        let items = |list: &str, disks: usize| {
            let disk = Disk { capacity: 1 << 30, size: 1, populated: 1 };
            let text = String::from_utf8(settings(list, "vm", disks).unwrap().descriptor(&vec![disk; disks])).unwrap();
            let document = roxmltree::Document::parse(&text).unwrap();
            let items = document.descendants().filter(|node| node.tag_name().name() == "Item");
            let fields = |item: roxmltree::Node<'_, '_>| {
                let field = |name: &str| item.children().find(|child| child.tag_name().name() == name)?.text();
                let kind = field("ResourceType").unwrap();
                if kind == "17" {
                    format!("disk {}:{}", field("Parent").unwrap(), field("AddressOnParent").unwrap())
                } else {
                    kind.to_owned()
                }
            };
            items.map(fields).collect::<Vec<_>>()
        };
        assert_eq!(items("nic=none", 1), ["3", "4", "6", "disk 3:0"]);
        assert_eq!(items("controller=sata", 2), ["3", "4", "20", "disk 3:0", "disk 3:1", "10"]);
        let ide = ["3", "4", "5", "5", "disk 3:0", "disk 3:1", "disk 4:0", "disk 4:1"];
        assert_eq!(items("controller=ide,nic=none", 4), ide);
        // The controller itself has the address 7.
        assert_eq!(items("controller=pvscsi,nic=none", 9)[9..], ["disk 3:6", "disk 3:8", "disk 3:9"]);
    }

    #[test]
    fn the_machine_is_what_the_options_say() {
        let text = |list: &str| {
            let disk = Disk { capacity: 1 << 30, size: 1, populated: 1 };
            String::from_utf8(settings(list, "stem", 1).unwrap().descriptor(&[disk])).unwrap()
        };
        for (list, parts) in [
            ("", ["<Name>stem</Name>", ">2048</rasd:VirtualQuantity>", "<NetworkSection>"]),
            ("name=a<&\u{1}b\u{ffff},memory=512M,cpus=768", ["<Name>a&lt;&amp;b</Name>", ">512</", ">768</"]),
            ("firmware=efi,hwversion=99", ["key=\"firmware\" vmw:value=\"efi\"", "vmx-99", ""]),
            ("hwversion=4,name=", ["vmx-04", "<Name>vm</Name>", ""]),
        ] {
            let text = text(list);
            assert!(parts.iter().all(|part| text.contains(part)), "{list}: {text}");
        }
        assert!(!text("").contains("firmware") && !text("nic=none").contains("NetworkSection"));
        let systems = ["ubuntu64Guest", "debian5Guest", "windows9_64Guest", "winXPProGuest"].map(system_id);
        assert_eq!(systems, [101, 36, 102, 1]);
    }

    /// The order of elements in DMTF DSP8023 1.1.1, the schema of the envelope, and in those of its items.
    #[test]
    fn elements_are_in_the_order_of_the_schema() {
        for list in ["", "controller=ide,firmware=efi", "controller=sata,nic=none,guest_os=ubuntu64Guest"] {
            let settings = settings(list, "vm", 3).unwrap();
            let disk = Disk { capacity: 1 << 30, size: 1, populated: 1 };
            let text = String::from_utf8(settings.descriptor(&[disk; 3])).unwrap();
            let document = roxmltree::Document::parse(&text).unwrap();
            let children = |node: roxmltree::Node<'_, '_>| {
                let names =
                    node.children().filter(roxmltree::Node::is_element).map(|child| child.tag_name().name().to_owned());
                names.collect::<Vec<_>>()
            };
            let in_order = |found: &[String], order: &[&str]| {
                let places: Vec<_> = found.iter().map(|name| order.iter().position(|own| own == name)).collect();
                assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{list}: {found:?}");
            };
            let root = document.root_element();
            in_order(&children(root), &["References", "DiskSection", "NetworkSection", "VirtualSystem"]);
            for node in root.descendants().filter(roxmltree::Node::is_element) {
                let found = children(node);
                match node.tag_name().name() {
                    "VirtualSystem" => {
                        in_order(&found, &["Info", "Name", "OperatingSystemSection", "VirtualHardwareSection"]);
                    }
                    "VirtualHardwareSection" => in_order(&found, &["Info", "System", "Item", "Config"]),
                    section if section.ends_with("Section") => assert_eq!(found[0], "Info", "{section}"),
                    "Item" | "System" => {
                        assert!(found.is_sorted(), "{list}: {found:?}");
                        for required in ["ElementName", "InstanceID"] {
                            assert!(found.iter().any(|name| name == required), "{list}: {found:?}");
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_descriptor_has_the_length_that_was_reserved_and_parses(
            name in "[^,=]{0,40}",
            controller in prop::sample::select(vec!["lsilogic", "pvscsi", "sata", "ide"]),
            efi in any::<bool>(),
            disks in prop::collection::vec((any::<u64>(), any::<u64>()), 1..5),
        ) {
            let mut options = Options::new();
            options.set("name", &*name);
            options.set("controller", controller);
            options.set("firmware", if efi { "efi" } else { "bios" });
            let settings = Settings::parse(&options, "my vm", disks.len()).unwrap();
            let list: Vec<_> = disks.iter().map(|(capacity, size)| Disk { capacity: *capacity, size: *size, populated: *size }).collect();
            let text = settings.descriptor(&list);
            prop_assert_eq!(text.len() as u64, settings.descriptor_len(disks.len()));
            let envelope = Envelope::parse(&text, &crate::limits::Limits::default()).unwrap();
            let found: Vec<_> = envelope.disks.iter().map(|disk| {
                let file = &envelope.files[disk.file.unwrap()];
                (disk.capacity.unwrap(), file.size.unwrap())
            }).collect();
            prop_assert_eq!(found, disks);
        }
    }
}
