//! Create and update: one path for every way in which an object comes to be or changes.
//!
//! ```text
//! decode → defaults → admission (mutate) → metadata, prepare → allocate → validate → admission
//! (validate) → encode → commit
//! ```

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use rimward_api::meta::str_at;
use rimward_api::{ObjectKey, Status, UserInfo};
use rimward_control_kinds::Write;
use rimward_control_kinds::check::meta as rules;
use rimward_control_schema as schema;
use rimward_control_store::{CommitError, Expect, Op, Revision};
use serde_json::Value;

use crate::admission::{self, Admitted, Operation, Review};
use crate::decode;
use crate::definitions::stored::Encoded;
use crate::error;
use crate::meta;
use crate::options::{WriteOptions, parse_revision};
use crate::quotas::Counted;
use crate::rest::delete::finalized;
use crate::rest::ownership::{Ownership, ignored};
use crate::served::Served;
use crate::server::Inner;
use crate::views::{Stored, to_served, to_stored};

/// How often a write that has no precondition of its own is tried again when others win.
const ATTEMPTS_MAX: usize = 64;
const GENERATED_NAMES_MAX: usize = 8;
const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// A write's outcome: the record as it is now.
pub struct Written {
    pub stored: Stored,
    pub created: bool,
}

/// Who writes, and how.
pub struct Author<'a> {
    pub user: &'a UserInfo,
    pub options: &'a WriteOptions,
}

/// How an update makes the new object of the old one. Each gets and gives the served form.
pub enum Change<'a> {
    /// PUT: the decoded body.
    Replace(Value),
    Patch(decode::PatchKind, &'a Bytes),
    /// Server-side apply of the body as it was sent.
    Apply(Value),
    /// What a subresource of its own form does to the object.
    Rewrite(&'a (dyn Fn(Value) -> Result<Value, Status> + Send + Sync)),
}

impl Inner {
    /// Stores a new object; `object` is decoded, in the served form.
    pub async fn create(
        &self,
        served: &Arc<Served>,
        namespace: &str,
        object: Value,
        author: &Author<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Written, Status> {
        self.create_recorded(served, namespace, object, false, author, warnings).await
    }

    /// As [`Inner::create`]; `recorded` says that an apply made the record of its fields already.
    async fn create_recorded(
        &self,
        served: &Arc<Served>,
        namespace: &str,
        object: Value,
        recorded: bool,
        author: &Author<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Written, Status> {
        if served.custom.as_ref().is_some_and(|c| c.definition.terminating) {
            return Err(error::terminating(served));
        }
        let mut object = object;
        let now = Timestamp::now();
        match str_at(&object, &["metadata", "namespace"]).unwrap_or_default() {
            "" => {}
            sent if sent == namespace || (namespace.is_empty() && served.kind.namespaced()) => {}
            _ if !served.kind.namespaced() => {}
            _ => {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
        if str_at(&object, &["metadata", "resourceVersion"])
            .is_some_and(|v| !v.is_empty() && v != "0")
        {
            return Err(Status::new(
                500,
                rimward_api::Reason::Unknown,
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.apply_defaults(served, &mut object);
        let mut object = to_stored(served, object);
        let kind = &served.stored;
        let managed_fields = match recorded {
            true => None,
            false => self.record_creator(served, &mut object, author, now),
        };
        if !namespace.is_empty() {
            meta::metadata(&mut object).insert("namespace".into(), namespace.into());
        }
        let mut review = Review {
            served,
            subresource: "",
            operation: Operation::Create,
            user: author.user,
            options: admission::Options::Create(author.options),
            key: ObjectKey::of(&object),
            object: &mut object,
            old: None,
            warnings,
        };
        let mut admitted = admission::mutate(self, &mut review).await?;
        // The uid comes first: some kinds make labels of it.
        meta::fill_for_create(review.object, namespace, kind.hooks.has_generation(), now);
        kind.hooks.prepare_create(review.object);
        admission::allocate(self, &mut review, &mut admitted)?;
        let drafted = &*review.object;
        let generated = str_at(drafted, &["metadata", "generateName"]).is_some_and(|p| {
            !p.is_empty()
                && str_at(drafted, &["metadata", "name"]).is_some_and(|n| n.starts_with(p))
        });
        let name = str_at(drafted, &["metadata", "name"]).unwrap_or_default().to_owned();
        let mut errors = rules::validate_create(kind, drafted);
        errors.extend(served.rules_of_writes().validate_create(drafted));
        if !errors.is_empty() {
            return Err(Status::invalid(&served.group_kind(), &name, &errors));
        }
        review.warnings.extend(kind.hooks.warnings(drafted));
        review.key.name = name;
        admission::validate(self, &mut review).await?;
        // What was just set may call for defaults in its turn, as decoding from storage would give.
        kind.hooks.default(&mut object);

        for attempt in 0.. {
            let key = served.key(&ObjectKey::of(&object));
            let (fields, dry_run) = (managed_fields.as_deref(), author.options.dry_run);
            match self.insert(served, &key, &object, fields, &admitted, dry_run).await? {
                Inserted::Done(stored) => {
                    admitted.keep(author.options.dry_run);
                    self.after_write(served, None, Some(&object), stored.revision).await;
                    return Ok(Written { stored, created: true });
                }
                Inserted::NamespaceChanged => {
                    let namespace = ObjectKey::of(&object).namespace;
                    admitted.check =
                        admission::namespace::check(self, served, &object, &namespace).await?;
                }
                Inserted::Exists if generated && attempt < GENERATED_NAMES_MAX => {
                    let meta = meta::metadata(&mut object);
                    let prefix = meta["generateName"].as_str().unwrap_or_default();
                    let name = meta::generate_name(prefix);
                    meta.insert("name".into(), name.into());
                }
                Inserted::Exists => {
                    let name = str_at(&object, &["metadata", "name"]).unwrap_or_default();
                    return Err(Status::already_exists(&served.group_resource(), name));
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Defaults that the schema declares, then those that the kind computes.
    pub fn apply_defaults(&self, served: &Served, object: &mut Value) {
        if let Some(definition) = served.definition.filter(|_| served.custom.is_none()) {
            schema::defaults::apply_defaults(&served.model, definition, object);
        }
        served.kind.hooks.default(object);
    }

    async fn insert(
        &self,
        served: &Served,
        key: &str,
        object: &Value,
        managed_fields: Option<&str>,
        admitted: &Admitted,
        dry_run: bool,
    ) -> Result<Inserted, Status> {
        let encoded = match managed_fields {
            Some(fields) => self.encode_managed(served, object, fields)?,
            None => self.encode(served, object).await?,
        };
        let stored = |revision| Stored {
            key: key.into(),
            record: encoded.answer.clone(),
            revision,
            kept: !dry_run,
        };
        if dry_run {
            let there = self.store.get(key, None).await.map_err(error::store)?;
            return Ok(if there.is_some() { Inserted::Exists } else { Inserted::Done(stored(0)) });
        }
        let put =
            Op::Put { key: key.to_owned(), value: encoded.bytes.clone(), expect: Expect::Absent };
        let ops = std::iter::once(put).chain(admitted.check.clone()).collect();
        match self.commit_counted(ops, &Counted::create(served, object)).await? {
            Ok(revision) => Ok(Inserted::Done(stored(revision))),
            Err(CommitError::Conflict { op: 0, .. }) => Ok(Inserted::Exists),
            Err(CommitError::Conflict { .. }) => Ok(Inserted::NamespaceChanged),
            Err(e) => Err(error::commit(e)),
        }
    }

    /// Changes a stored object, again if another write came between and this one did not say which
    /// version it was for.
    pub async fn update(
        &self,
        served: &Arc<Served>,
        key: &ObjectKey,
        subresource: &str,
        change: Change<'_>,
        author: &Author<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Written, Status> {
        let store_key = served.key(key);
        for _ in 0..ATTEMPTS_MAX {
            let entry = self.store.get(&store_key, None).await.map_err(error::store)?;
            let Some(entry) = entry else {
                return self
                    .create_by_update(served, key, subresource, change, author, warnings)
                    .await;
            };
            let current = Stored::open(&entry)?;
            let as_it_is = match &served.custom {
                Some(custom) => custom.is_newest(&current.record),
                None => true,
            };
            let current = self.present_one(served, current).await?;
            let mut notes = Vec::new();
            let mut draft =
                self.draft(served, key, subresource, &change, &current, author, &mut notes)?;
            let conditional = draft.conditional;
            draft.as_it_is = as_it_is;
            let outcome =
                self.store_update(served, subresource, draft, current, author, &mut notes).await;
            if !matches!(outcome, Ok(None)) {
                warnings.extend(notes);
            }
            match outcome? {
                Some(stored) => return Ok(Written { stored, created: false }),
                None if conditional => {
                    return Err(Status::conflict(&served.group_resource(), &key.name, MODIFIED));
                }
                None => {}
            }
        }
        Err(Status::conflict(&served.group_resource(), &key.name, MODIFIED))
    }

    /// A PUT or an apply of something that is not there.
    async fn create_by_update(
        &self,
        served: &Arc<Served>,
        key: &ObjectKey,
        subresource: &str,
        change: Change<'_>,
        author: &Author<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Written, Status> {
        let missing = || Status::not_found(&served.group_resource(), &key.name);
        let object = match change {
            Change::Replace(object) if subresource.is_empty() && served.rules.create_on_update => {
                object
            }
            Change::Apply(applied) if subresource.is_empty() => {
                if str_at(&applied, &["metadata", "uid"]).is_some_and(|u| !u.is_empty()) {
                    return Err(missing());
                }
                let merged = self.apply(served, None, &applied, subresource, author)?;
                let validation = author.options.validation;
                let decoded = decode::patched(served, merged, None, validation, warnings)?;
                return self
                    .create_recorded(served, &key.namespace, decoded, true, author, warnings)
                    .await;
            }
            _ => return Err(missing()),
        };
        check_name(&object, key)?;
        self.create(served, &key.namespace, object, author, warnings).await
    }

    fn apply(
        &self,
        served: &Served,
        live: Option<&Value>,
        applied: &Value,
        subresource: &str,
        author: &Author<'_>,
    ) -> Result<Value, Status> {
        let definition = served.definition.ok_or_else(error::unsupported_media)?;
        let api_version = served.kind.api_version();
        let write = schema::managed::Write {
            manager: &author.options.manager,
            api_version: &api_version,
            subresource,
            now: Timestamp::now(),
            ignored: ignored(served, subresource),
        };
        schema::managed::apply(
            &served.model,
            definition,
            live,
            applied,
            &write,
            author.options.force,
        )
    }

    /// The new object before admission, in the stored form.
    #[allow(
        clippy::too_many_arguments,
        reason = "one call site; a struct would only rename the list"
    )]
    fn draft(
        &self,
        served: &Served,
        key: &ObjectKey,
        subresource: &str,
        change: &Change<'_>,
        current: &Stored,
        author: &Author<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Draft, Status> {
        let ownership = self.ownership(served, current, change);
        let old = match ownership {
            Ownership::Text { .. } => self.lean_value(served, current)?,
            Ownership::InObjects => current.stored_value(served)?,
        };
        let live = || to_served(served, old.clone());
        let validation = author.options.validation;
        let replaces = matches!(change, Change::Replace(_));
        let applies = matches!(change, Change::Apply(_));
        let new = match change {
            Change::Replace(object) => {
                check_name(object, key)?;
                object.clone()
            }
            Change::Patch(kind, body) => {
                let before = live();
                let after =
                    decode::apply_patch(&served.model, served.definition, *kind, &before, body)?;
                decode::patched(served, after, Some((*kind, &body[..])), validation, warnings)?
            }
            Change::Apply(applied) => {
                let merged = self.apply(served, Some(&live()), applied, subresource, author)?;
                decode::patched(served, merged, None, validation, warnings)?
            }
            Change::Rewrite(rewrite) => rewrite(live())?,
        };
        check_name(&new, key)?;
        let sent = |field: &str| str_at(&new, &["metadata", field]).unwrap_or_default().to_owned();
        let (revision, uid) = (sent("resourceVersion"), sent("uid"));
        let stored_uid = current.record.uid();
        if !uid.is_empty() && uid != stored_uid {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {stored_uid}"
            );
            return Err(Status::conflict(&served.group_resource(), &key.name, &why));
        }
        let asked = match revision.as_str() {
            "" | "0" => None,
            text => Some(parse_revision(text)?),
        };
        if replaces && asked.is_none() && !served.stored.hooks.allows_unconditional_update() {
            let error = rimward_api::FieldError::invalid(
                "metadata.resourceVersion",
                &Value::from(0),
                "must be specified for an update",
            );
            return Err(Status::invalid(&served.group_kind(), &key.name, &[error]));
        }
        if asked.is_some_and(|r| r != current.revision) {
            return Err(Status::conflict(&served.group_resource(), &key.name, MODIFIED));
        }
        // A patch starts from the current version and so names it; only a version that the client
        // itself sent is a precondition.
        let conditional = match change {
            Change::Replace(_) => asked.is_some(),
            Change::Patch(_, body) => names_version(body),
            Change::Apply(applied) => str_at(applied, &["metadata", "resourceVersion"]).is_some(),
            Change::Rewrite(_) => false,
        };
        let mut new = new;
        self.apply_defaults(served, &mut new);
        let mut new = to_stored(served, new);
        meta::metadata(&mut new).remove("resourceVersion");
        let mut draft = Draft { old, new, conditional, as_it_is: true, ownership };
        if !applies {
            self.record_updater(served, &mut draft, author, subresource, Timestamp::now());
        }
        Ok(draft)
    }

    /// None when another write came first.
    async fn store_update(
        &self,
        served: &Arc<Served>,
        subresource: &str,
        draft: Draft,
        current: Stored,
        author: &Author<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Stored>, Status> {
        let mut draft = draft;
        if admission::looks_on(self) {
            draft.show_ownership();
        }
        let Draft { old, mut new, as_it_is, ownership, .. } = draft;
        let kind = &served.stored;
        let write = if subresource.is_empty() { Write::Main } else { Write::Sub(subresource) };
        meta::carry_over(&mut new, &old);
        let mut review = Review {
            served,
            subresource,
            operation: Operation::Update,
            user: author.user,
            options: admission::Options::Update(author.options),
            key: ObjectKey::of(&old),
            object: &mut new,
            old: Some(&old),
            warnings,
        };
        let mut admitted = admission::mutate(self, &mut review).await?;
        let new = &mut *review.object;
        if admitted.rewritten {
            meta::carry_over(new, &old);
        }
        if subresource == "status" {
            let resource = (kind.group.as_str(), kind.resource.as_str());
            meta::keep_for_status(resource, new, &old);
        }
        kind.hooks.prepare_update(write, new, &old);
        admission::allocate(self, &mut review, &mut admitted)?;
        let new = &mut *review.object;
        // That a pod was given its node is nothing that somebody asked of the pod.
        if kind.hooks.has_generation() && !matches!(subresource, "status" | "binding") {
            let annotations = |o: &Value| o["metadata"].get("annotations").cloned();
            let counted = served.rules.annotations_count && annotations(new) != annotations(&old);
            let status = served.rules.status_counts && new.get("status") != old.get("status");
            if counted || status || !meta::same_spec(new, &old) {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                meta::metadata(new).insert("generation".into(), generation.into());
            }
        }
        let mut errors = rules::validate_update(kind, new, &old);
        errors.extend(served.rules_of_writes().validate_update(write, new, &old));
        if !errors.is_empty() {
            let name = str_at(new, &["metadata", "name"]).unwrap_or_default();
            return Err(Status::invalid(&served.group_kind(), name, &errors));
        }
        if subresource.is_empty() {
            review.warnings.extend(kind.hooks.update_warnings(new, &old));
        }
        admission::validate(self, &mut review).await?;
        let new = &*review.object;
        if as_it_is && meta::same_but_times(new, &old) && ownership.same_but_times() {
            return Ok(Some(current));
        }
        let Encoded { bytes, answer: record } = match ownership.new_text() {
            Some(fields) => self.encode_managed(served, new, fields)?,
            None => self.encode(served, new).await?,
        };
        let ends = finalized(served, new);
        if author.options.dry_run {
            return Ok(Some(Stored { record, kept: false, ..current }));
        }
        let (key, expect) = (current.key.to_string(), Expect::At(current.revision));
        let op = match ends {
            true => Op::Delete { key, expect },
            false => Op::Put { key, value: bytes, expect },
        };
        let counted = Counted::update(served, subresource, &old, (!ends).then_some(new));
        match self.commit_counted(vec![op], &counted).await? {
            Ok(revision) => {
                admitted.keep(false);
                let now = (!ends).then_some(new);
                self.after_write(served, Some(&old), now, revision).await;
                Ok(Some(Stored { key: current.key, record, revision, kept: !ends }))
            }
            Err(CommitError::Conflict { .. }) => Ok(None),
            Err(e) => Err(error::commit(e)),
        }
    }

    /// What follows from a committed write before it is answered: allocations that it gave up return
    /// to their pools, and authorization has seen a change of roles.
    pub async fn after_write(
        &self,
        served: &Served,
        old: Option<&Value>,
        new: Option<&Value>,
        revision: Revision,
    ) {
        if served.is("", "services")
            && let Some(old) = old
        {
            self.pools.release(old, new);
        }
        if revision > 0 {
            self.mirrors.caught_up(&served.kind.storage, revision).await;
        }
    }
}

pub struct Draft {
    pub old: Value,
    pub new: Value,
    conditional: bool,
    /// The stored record is in the form in which it would be written now.
    as_it_is: bool,
    pub ownership: Ownership,
}

enum Inserted {
    Done(Stored),
    Exists,
    NamespaceChanged,
}

/// Whether a patch itself names the resourceVersion it is for.
fn names_version(body: &[u8]) -> bool {
    const NAME: &[u8] = b"resourceVersion";
    body.windows(NAME.len()).any(|w| w == NAME)
}

fn check_name(object: &Value, key: &ObjectKey) -> Result<(), Status> {
    let sent = ObjectKey::of(object);
    if sent.name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            key.name
        )));
    }
    if sent.name != key.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            sent.name, key.name
        )));
    }
    if !sent.namespace.is_empty() && sent.namespace != key.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
