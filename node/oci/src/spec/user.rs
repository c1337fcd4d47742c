//! Who a container's program is: the pod's word, else the image's, looked up in the image's own files.

use rimward_node_pod::runtime::User;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

impl Resolved {
    /// # Errors
    /// Names an id that is not below `count`, so that the pod's own namespace of users has none such.
    pub fn within(&self, count: u32) -> Result<(), String> {
        let groups = self.groups.iter().map(|gid| ("group", *gid));
        let ids = [("user", self.uid), ("group", self.gid)].into_iter().chain(groups);
        let mut out = ids.filter(|(_, id)| *id >= count);
        out.next().map_or(Ok(()), |(what, id)| {
            Err(format!(
                "{what} id {id} is not in the pod's user namespace (hostUsers: false), which has those from 0 to {}",
                count - 1
            ))
        })
    }
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// `image_user` is `USER[:GROUP]`, each a name or a number.
///
/// # Errors
/// Names a user or group that the image does not have.
pub(crate) fn resolve(
    image_user: &str,
    wanted: &User,
    passwd: &str,
    group: &str,
) -> Result<Resolved, String> {
    let (image_user, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let by_uid = |uid: u32| entries(passwd).find(|entry| entry.uid == uid);
    let from_image = wanted.uid.is_none();
    let (uid, entry) = match (wanted.uid, image_user.parse::<u32>()) {
        (Some(uid), _) => {
            let uid = number(uid, "user id")?;
            (uid, by_uid(uid))
        }
        (None, Ok(uid)) => (uid, by_uid(uid)),
        (None, Err(_)) if image_user.is_empty() => (0, by_uid(0)),
        (None, Err(_)) => {
            let entry = entries(passwd).find(|entry| entry.name == image_user);
            let entry = entry.ok_or_else(|| {
                format!("unable to find user {image_user}: no matching entries in passwd file")
            })?;
            (entry.uid, Some(entry))
        }
    };
    let gid = match (wanted.gid, from_image && !image_group.is_empty()) {
        (Some(gid), _) => number(gid, "group id")?,
        (None, true) => group_named(image_group, group)?,
        (None, false) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = Vec::new();
    for gid in &wanted.supplemental_gids {
        groups.push(number(*gid, "supplemental group id")?);
    }
    // supplementalGroupsPolicy Merge, the default: what the image says of the user holds too.
    if let Some(entry) = entry.as_ref().filter(|_| !wanted.strict_groups) {
        groups.extend(groups_of(entry.name, group));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/");
    Ok(Resolved { uid, gid, groups, home: home.to_owned() })
}

fn number(id: i64, what: &str) -> Result<u32, String> {
    u32::try_from(id).map_err(|_| format!("{what} {id} is not between 0 and {}", u32::MAX))
}

fn entries(passwd: &str) -> impl Iterator<Item = Passwd<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Passwd { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_named(name: &str, group: &str) -> Result<u32, String> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let found = group_lines(group).find(|(n, ..)| *n == name);
    found
        .map(|(_, gid, _)| gid)
        .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let has = |members: &str| members.split(',').any(|member| member == user);
    group_lines(group).filter(|(.., members)| has(members)).map(|(_, gid, _)| gid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:Web:/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:web,other\nextra:x:50:web\n";

    #[track_caller]
    fn check(image: &str, user: User, expected: Result<(u32, u32, &[u32], &str), &str>) {
        let got = resolve(image, &user, PASSWD, GROUP);
        match (got, expected) {
            (Ok(got), Ok((uid, gid, groups, home))) => {
                let expected = Resolved { uid, gid, groups: groups.to_vec(), home: home.into() };
                assert_eq!(got, expected);
            }
            (Err(got), Err(part)) => assert!(got.contains(part), "{got}"),
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn users() {
        let nobody = User::default;
        let with = |uid, gid| User { uid, gid, ..User::default() };
        check("", nobody(), Ok((0, 0, &[], "/root")));
        check("web", nobody(), Ok((101, 102, &[33, 50], "/srv")));
        check("web:www", nobody(), Ok((101, 33, &[33, 50], "/srv")));
        check("1000:7", nobody(), Ok((1000, 7, &[], "/")));
        check("web", with(Some(1000), None), Ok((1000, 0, &[], "/")));
        check("web", with(Some(101), Some(9)), Ok((101, 9, &[33, 50], "/srv")));
        check(
            "",
            User { supplemental_gids: vec![8, 7, 8], ..nobody() },
            Ok((0, 0, &[7, 8], "/root")),
        );
        let strict = User { supplemental_gids: vec![8], strict_groups: true, ..nobody() };
        check("web", strict, Ok((101, 102, &[8], "/srv")));
        check("ghost", nobody(), Err("unable to find user ghost"));
        check("web:ghosts", nobody(), Err("unable to find group ghosts"));
        check("", with(Some(-1), None), Err("user id -1"));
    }
}
