//! The options of `qemu-img amend` for key slots.

use std::time::Duration;

use diskimage::driver::KeyChange;
use diskimage::{Format, Options, Secret};

use super::message::Failed;
use super::source::Sources;

/// Takes the change of the key slots out of the options, if there is one.
pub fn take(
    options: &mut Options,
    format: Format,
    sources: &Sources,
    force: bool,
) -> Result<Option<KeyChange>, Failed> {
    let prefix = if format == Format::LUKS { "" } else { "encrypt." };
    let mut take = |name: &str| options.take(&format!("{prefix}{name}"));
    let (state, slot, iter_time) = (take("state"), take("keyslot"), take("iter-time"));
    let (new, old) = (take("new-secret"), take("old-secret"));
    // What the image is encrypted with does not change.
    take("format");
    let secret = |id: &str| -> Result<Secret, Failed> {
        let found = sources.secrets().of_target(Some(id)).ok().flatten();
        found.ok_or_else(|| Failed::new(format!("No secret with id '{id}'")))
    };
    let slot = slot.map(|slot| number(&slot, "keyslot")).transpose()?;
    let slot = slot.map(|slot| usize::try_from(slot).unwrap_or(usize::MAX));
    match state.as_deref() {
        None if slot.is_some() || new.is_some() || old.is_some() => {
            Err(Failed::new(format!("Parameter '{prefix}state' is missing")))
        }
        None => Ok(None),
        Some("active") => {
            let Some(new) = new else { return Err(Failed::new("'new-secret' is required to activate a keyslot")) };
            if old.is_some() {
                return Err(Failed::new("'old-secret' must not be given when activating keyslots"));
            }
            let iter_time = iter_time.map(|time| number(&time, "iter-time")).transpose()?.map(Duration::from_millis);
            Ok(Some(KeyChange::Add { secret: secret(&new)?, slot, iter_time, force }))
        }
        Some("inactive") => {
            if new.is_some() {
                return Err(Failed::new("'new-secret' must not be given when erasing keyslots"));
            }
            if iter_time.is_some() {
                return Err(Failed::new("'iter-time' must not be given when erasing keyslots"));
            }
            match (old, slot) {
                (Some(old), _) => Ok(Some(KeyChange::EraseSecret { secret: secret(&old)?, force })),
                (None, Some(slot)) => Ok(Some(KeyChange::EraseSlot { slot, force })),
                (None, None) => Err(Failed::new(
                    "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given",
                )),
            }
        }
        Some(other) => Err(Failed::new(format!("Parameter '{prefix}state' does not accept value '{other}'"))),
    }
}

/// The words of qemu-img for a change that the library refuses.
pub fn words(problem: &str) -> String {
    let irreversible = "erase all the data in the image irreversibly - refusing operation";
    let of_slot = || {
        let (slot, problem) = problem.strip_prefix("key slot ")?.split_once(" is ")?;
        Some(match problem {
            "not active" => format!("Given keyslot {slot} is already erased (inactive)"),
            "active: erase it first" => format!("Refusing to overwrite active keyslot {slot} - please erase it first"),
            _ => format!("Attempt to erase the only active keyslot {slot} which will {irreversible}"),
        })
    };
    match problem {
        "the secret unlocks no key slot" => "No keyslots match given (old) password for erase operation".to_owned(),
        "all key slots are active" => "Can't add a keyslot - all keyslots are in use".to_owned(),
        _ if problem.starts_with("the secret unlocks all active key slots") => {
            format!(
                "All the active keyslots match the (old) password that was given and erasing them will {irreversible}"
            )
        }
        _ => match problem.strip_prefix("invalid key slot ").and_then(|rest| rest.split_once(": expected 0 to ")) {
            Some((slot, last)) => format!("Invalid keyslot {slot} specified. Must be between 0 and {last}"),
            None => of_slot().unwrap_or_else(|| problem.to_owned()),
        },
    }
}

fn number(text: &str, name: &str) -> Result<u64, Failed> {
    text.parse().map_err(|_| Failed::new(format!("Parameter '{name}' expects a number")))
}
