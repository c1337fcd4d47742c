//! Which ids of the machine are those of pods with users of their own (`hostUsers: false`): a range of them a
//! pod, none in two.
//! <https://kubernetes.io/docs/concepts/workloads/pods/user-namespaces/#set-up-a-node-to-support-user-namespaces>

/// As many ids as a pod's containers can count on; those below are the machine's own.
pub const IDS_OF_POD: u32 = 65_536;

/// The ids that a node has for its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserIds {
    pub first: u32,
    pub count: u32,
}

/// Whom the machine's files of subordinate ids name.
const NAME: &str = "rimward";

impl UserIds {
    /// What `/etc/subuid` and `/etc/subgid` give to the user `rimward`, where they do: then it must be the same
    /// in both. Else everything above the machine's own, as far as every file system can count.
    ///
    /// # Errors
    /// Names the line that cannot be.
    pub fn of_machine() -> Result<Self, String> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(&read("/etc/subuid"), &read("/etc/subgid"))
    }

    fn of(subuid: &str, subgid: &str) -> Result<Self, String> {
        let (users, groups) = (line(subuid, "/etc/subuid")?, line(subgid, "/etc/subgid")?);
        match (users, groups) {
            (None, None) => Ok(Self { first: IDS_OF_POD, count: (1 << 31) - 2 * IDS_OF_POD }),
            (Some(users), Some(groups)) if users == groups => Ok(users),
            _ => Err(format!(
                "/etc/subuid and /etc/subgid give user {NAME} different ids ({users:?}, {groups:?}): give it the \
                 same in both, or in neither"
            )),
        }
    }

    /// The first id of a range that none of the `taken` ones is.
    ///
    /// # Errors
    /// When all are.
    pub fn free(self, taken: &[u32]) -> Result<u32, String> {
        let ranges = self.count / IDS_OF_POD;
        let mut starts = (0..ranges).map(|n| self.first + n * IDS_OF_POD);
        let apart = |start: u32| taken.iter().all(|other| start.abs_diff(*other) >= IDS_OF_POD);
        starts.find(|start| apart(*start)).ok_or_else(|| {
            format!(
                "all {ranges} ranges of {IDS_OF_POD} user ids from {} on are taken by pods with hostUsers: false; \
                 give user {NAME} more of them in /etc/subuid and /etc/subgid",
                self.first
            )
        })
    }
}

fn line(text: &str, path: &str) -> Result<Option<UserIds>, String> {
    let mut own = text.lines().filter_map(|line| line.trim().strip_prefix(NAME)?.strip_prefix(':'));
    let Some(rest) = own.next() else { return Ok(None) };
    let wrong = |why: &str| format!("{path}: \"{NAME}:{rest}\": {why}");
    if own.next().is_some() {
        return Err(wrong("there is more than one range of this user"));
    }
    let numbers = rest.split_once(':').and_then(|(first, count)| {
        Some((first.parse::<u32>().ok()?, count.trim().parse::<u32>().ok()?))
    });
    let (first, count) = numbers.ok_or_else(|| wrong("it is not FIRST:COUNT"))?;
    if first < IDS_OF_POD || first.checked_add(count).is_none() || count < IDS_OF_POD {
        return Err(wrong("ids begin at 65536, and there are at least that many"));
    }
    Ok(Some(UserIds { first, count }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap() {
        let ids = UserIds { first: 100_000, count: 3 * IDS_OF_POD + 5 };
        assert_eq!(ids.free(&[]), Ok(100_000));
        assert_eq!(ids.free(&[100_000]), Ok(165_536));
        // Of a time when the node's ids began elsewhere.
        assert_eq!(ids.free(&[100_001]), Ok(231_072));
        assert_eq!(ids.free(&[165_536]), Ok(100_000));
        let why = ids.free(&[100_000, 165_536, 231_072]).unwrap_err();
        assert!(why.contains("all 3 ranges of 65536 user ids from 100000 on"), "{why}");
    }

    #[test]
    fn what_the_machine_gives() {
        let check = |subuid: &str, subgid: &str| UserIds::of(subuid, subgid);
        let given = "me:1:2\nrimward:200000:131072\n";
        assert_eq!(check("", "me:1:2"), Ok(UserIds { first: 65_536, count: 2_147_352_576 }));
        assert_eq!(check(given, given), Ok(UserIds { first: 200_000, count: 131_072 }));
        for (subuid, subgid, why) in [
            (given, "", "different ids"),
            ("rimward:x", "", "\"rimward:x\": it is not FIRST:COUNT"),
            ("rimward:1:65536", "", "ids begin at 65536"),
            ("rimward:4294900000:131072", "", "ids begin at 65536"),
            ("rimward:70000:131072\nrimward:270000:131072", "", "more than one range"),
        ] {
            let error = check(subuid, subgid).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
