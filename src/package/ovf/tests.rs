use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

const DMTF: &str =
    r#"xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1""#;

/// The names of the files of the disks, in order.
fn disks(text: &str) -> Vec<(String, Option<String>, Option<u64>)> {
    let envelope = Envelope::parse(text.as_bytes(), &Limits::default()).unwrap();
    let href = |disk: &Disk| disk.file.map(|index| envelope.files[index].href.to_string());
    envelope.disks.iter().map(|disk| (disk.id.to_string(), href(disk), disk.capacity)).collect()
}

fn item(id: u32, kind: u32, parent: &str, address: &str, resource: &str) -> String {
    format!(
        "<Item><rasd:AddressOnParent>{address}</rasd:AddressOnParent><rasd:HostResource>{resource}</rasd:HostResource>\
         <rasd:InstanceID>{id}</rasd:InstanceID><rasd:Parent>{parent}</rasd:Parent><rasd:ResourceType>{kind}</rasd:ResourceType></Item>"
    )
}

#[test]
fn disks_are_in_the_order_of_the_hardware() {
    let items = [
        item(1, 20, "", "", ""),
        item(2, 5, "", "", ""),
        item(7, 17, "2", "1", "/disk/ide1"),
        item(8, 17, "2", "0", "ovf:/disk/ide0"),
        item(9, 17, "1", "10", "ovf:/disk/sata10"),
        item(10, 17, "1", "9", "ovf:/disk/sata9"),
        item(11, 17, "1", "9", "ovf:/disk/sata9"),
        item(12, 15, "1", "8", "ovf:/file/iso"),
        item(13, 17, "1", "11", "ovf:/file/direct"),
    ];
    let names = ["loose", "ide0", "ide1", "sata10", "sata9"];
    let files: String =
        names.iter().map(|name| format!(r#"<File ovf:id="f-{name}" ovf:href="{name}.vmdk"/>"#)).collect();
    let list: String =
        names.iter().map(|name| format!(r#"<Disk ovf:diskId="{name}" ovf:fileRef="f-{name}"/>"#)).collect();
    let text = format!(
        r#"<?xml version="1.0"?><Envelope {DMTF} xmlns:rasd="r"><References>{files}<File ovf:id="iso" ovf:href="x.iso"/>
        <File ovf:id="direct" ovf:href="direct.img"/></References>
        <DiskSection><Info/>{list}</DiskSection><VirtualSystem><VirtualHardwareSection>{}</VirtualHardwareSection></VirtualSystem></Envelope>"#,
        items.concat()
    );
    let order: Vec<_> = disks(&text).into_iter().map(|(id, _, _)| id).collect();
    assert_eq!(order, ["sata9", "sata10", "direct", "ide0", "ide1", "loose"]);
}

#[test]
fn dialects() {
    // VirtualBox 0.9.
    let legacy = r#"<ovf:Envelope ovf:version="0.9" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:ovf="http://www.vmware.com/schema/ovf/1/envelope">
        <References><File ovf:href="a%20b.vmdk" ovf:id="file1" ovf:size="70656"/></References>
        <Section xsi:type="ovf:DiskSection_Type"><Disk ovf:capacity="4194304" ovf:diskId="d1" ovf:fileRef="file1"/></Section></ovf:Envelope>"#;
    assert_eq!(disks(legacy), [("d1".into(), Some("a%20b.vmdk".into()), Some(4 << 20))]);
    // vCloud: all elements with a prefix.
    let vcloud = r#"<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vcloud="v"><ovf:References>
        <ovf:File ovf:href="d.vmdk" ovf:id="f" vcloud:id="other"/></ovf:References>
        <ovf:DiskSection><ovf:Disk ovf:capacity="40" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="d" ovf:fileRef="f"/>
        <ovf:Disk ovf:capacity="1" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="empty"/></ovf:DiskSection></ovf:Envelope>"#;
    assert_eq!(
        disks(vcloud),
        [("d".into(), Some("d.vmdk".into()), Some(40 << 20)), ("empty".into(), None, Some(1 << 30))]
    );
    // Attributes without a prefix; a capacity that is a property; a byte order mark.
    let plain = "\u{feff}<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/2\"><References><File href=\"d\" id=\"f\" chunkSize=\"7\" size=\"9\"/></References>\
        <DiskSection><Disk capacity=\"${size}\" capacityAllocationUnits=\"GigaBytes\" diskId=\"d\" fileRef=\"f\" parentRef=\"p\"/></DiskSection>\
        <ProductSection><Property key=\"size\" value=\"2\"/></ProductSection></Envelope>";
    let envelope = Envelope::parse(plain.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(envelope.files[0].chunk_size.zip(envelope.files[0].size), Some((7, 9)));
    assert_eq!((envelope.disks[0].capacity, envelope.disks[0].parent.clone()), (Some(2 << 30), Some("p".into())));
    for text in [legacy, vcloud, plain] {
        assert!(is_descriptor(text.as_bytes()));
    }
    assert!(!is_descriptor(br#"<soap:Envelope xmlns:soap="http://schemas.xmlsoap.org/soap/envelope/"/>"#));
}

#[test]
fn a_capacity_that_is_not_understood_is_a_warning() {
    let text = format!(
        r#"<Envelope {DMTF}><DiskSection><Disk diskId="d" capacity="9" capacityAllocationUnits="pages"/></DiskSection></Envelope>"#
    );
    let envelope = Envelope::parse(text.as_bytes(), &Limits::default()).unwrap();
    assert_eq!(envelope.warnings, ["the capacity of disk d is not understood"]);
}

#[test]
fn hostile_descriptors_are_refused() {
    let envelope = |inner: &str| format!("<Envelope {DMTF}>{inner}</Envelope>").into_bytes();
    let file = r#"<File id="f" href="x"/>"#;
    let list = |count: u32, element: &str| (0..count).map(|at| format!("<{element}='{at}'/>")).collect::<String>();
    let deep = |levels: usize| envelope(&["<a>".repeat(levels), "</a>".repeat(levels)].concat());
    let bomb = br#"<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Envelope>&b;</Envelope>"#;
    for (text, kind, message) in [
        (b"".to_vec(), ErrorKind::InvalidField, "not well-formed"),
        (b"<Envelope".to_vec(), ErrorKind::InvalidField, "not well-formed"),
        (b"<Envelope>\xff</Envelope>".to_vec(), ErrorKind::InvalidField, "not UTF-8"),
        (b"<Envelope/>".to_vec(), ErrorKind::InvalidField, "not an envelope"),
        (bomb.to_vec(), ErrorKind::Unsupported, "document type definition"),
        (deep(500), ErrorKind::Limit, "depth"),
        (envelope(&"<a/>".repeat(250_000)), ErrorKind::Limit, "number of elements"),
        (
            format!("<Envelope {}/>", (0..300_000).map(|at| format!("a{at}='' ")).collect::<String>()).into_bytes(),
            ErrorKind::Limit,
            "number of attributes",
        ),
        (vec![b' '; 5 << 20], ErrorKind::Limit, "length of the descriptor"),
        (
            envelope(&format!("<DiskSection>{}</DiskSection>", list(1025, "Disk diskId"))),
            ErrorKind::Limit,
            "number of disks",
        ),
        (envelope(&format!("<References>{file}{file}</References>")), ErrorKind::InvalidField, "same identifier"),
        (envelope(r#"<References><File id="f"/></References>"#), ErrorKind::InvalidField, "href"),
        (envelope(r#"<References><File id="f" href="x" size="-1"/></References>"#), ErrorKind::InvalidField, "size"),
        (
            envelope(r#"<References><File id="f" href="x" chunkSize="0"/></References>"#),
            ErrorKind::InvalidField,
            "chunkSize",
        ),
        (
            envelope(r#"<DiskSection><Disk diskId="d" fileRef="nothing"/></DiskSection>"#),
            ErrorKind::InvalidField,
            "fileRef",
        ),
        (
            envelope(r#"<DiskSection><Disk diskId="d"/><Disk diskId="d"/></DiskSection>"#),
            ErrorKind::InvalidField,
            "diskId",
        ),
    ] {
        let error = Envelope::parse(&text, &Limits::default()).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(message), "{message}: {error}");
    }
    assert!(Envelope::parse(&deep(150), &Limits::default()).is_ok());
    for (name, limits) in [
        (LimitName::Metadata, Limits { metadata: 1000, ..Limits::default() }),
        (LimitName::TextLength, Limits { text_length: 1000, ..Limits::default() }),
        (LimitName::Members, Limits { members: 1, ..Limits::default() }),
    ] {
        let files = r#"<References><File id="a" href="a"/><File id="b" href="b"/></References>"#;
        let text = envelope(&format!("{files}{}", "<x/>".repeat(250)));
        let error = Envelope::parse(&text, &limits).unwrap_err();
        assert!(matches!(error, Error::Limit { name: Some(own), .. } if own == name), "{name}: {error}");
        assert!(Envelope::parse(&text, &Limits::default()).is_ok());
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(inner in "[<>/a-zA-Z \"=:&;!?\\[\\]-]{0,200}") {
        let _ = Envelope::parse(format!("<Envelope {DMTF}>{inner}</Envelope>").as_bytes(), &Limits::default());
        let _ = Envelope::parse(inner.as_bytes(), &Limits::default());
    }
}
