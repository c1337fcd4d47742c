//! What an object may look like: definitions, their fields, and how each behaves when it is
//! decoded, merged and owned.

use std::collections::HashMap;
use std::sync::OnceLock;

use rimward_api::GroupVersionKind;
use serde_json::Value;

/// A graph of definitions. Names are those of OpenAPI: `io.k8s.api.core.v1.Pod`.
///
/// A model may stand on another: that of a custom kind holds its own definitions and refers to
/// the built-in ones (ObjectMeta) by their ids.
#[derive(Debug, Default)]
pub struct Model {
    base: Option<&'static Model>,
    /// How many ids are the base's: they come first.
    base_len: u32,
    definitions: Vec<Definition>,
    by_name: HashMap<Box<str>, DefId>,
    by_kind: HashMap<GroupVersionKind, DefId>,
    /// The fields of each definition that lead to declared defaults, found when first asked for.
    pub(crate) defaulting: OnceLock<Box<[Box<[u16]>]>>,
}

/// The index of a definition within its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DefId(pub(crate) u32);

/// An object with known fields.
#[derive(Debug)]
pub struct Definition {
    pub name: Box<str>,
    /// The kinds that have this shape; empty for a part of a kind.
    pub kinds: Vec<GroupVersionKind>,
    /// Sorted by name.
    pub fields: Box<[Field]>,
    /// `x-kubernetes-map-type: atomic`: owned and merged as a whole.
    pub atomic: bool,
    /// Fields that are not declared may be there too: `x-kubernetes-preserve-unknown-fields`.
    pub open: bool,
    /// Indices of the fields that are there even when nobody said them; filled by [`Model::add`].
    pub(crate) constant: Box<[u16]>,
    /// The protobuf message, laid out when first asked for: most definitions never are.
    message: OnceLock<Box<[Part]>>,
}

/// A part of a protobuf message.
#[derive(Debug)]
pub enum Part {
    /// Index in [`Definition::fields`].
    Field { number: u32, index: u16 },
    /// An embedded message, whose fields JSON shows as the outer one's.
    Embedded { number: u32, parts: Box<[Part]> },
}

impl Part {
    pub fn number(&self) -> u32 {
        match self {
            Self::Field { number, .. } | Self::Embedded { number, .. } => *number,
        }
    }

    /// The part of that number; parts are sorted.
    pub fn find(parts: &[Self], number: u32) -> Option<&Self> {
        parts.binary_search_by_key(&number, Self::number).ok().map(|i| &parts[i])
    }
}

/// A field of a definition.
#[derive(Debug)]
pub struct Field {
    pub name: Box<str>,
    pub ty: Type,
    pub presence: Presence,
    /// As OpenAPI tells: a client must send it.
    pub required: bool,
    /// The declared default (`x-…` facts); procedural defaults live with the kinds.
    pub default: Option<Box<Value>>,
    /// Strategic merge patch: the key by which a list of objects merges.
    pub merge_key: Option<Box<str>>,
    pub patch: PatchStrategy,
    /// `x-kubernetes-map-type: atomic` on this use of an object or map.
    pub atomic: bool,
    /// The Go type as its error messages print it, without the pointer: `[]v1.Container`.
    pub go_type: Box<str>,
    pub proto: Option<Proto>,
}

/// When a field is there in the normal form of an object, which is what Go's decode and encode leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A pointer with omitempty: kept unless absent or null.
    Pointer,
    /// A pointer without omitempty: null when not sent.
    PointerOrNull,
    /// omitempty or omitzero: kept unless zero (`""`, 0, false, `[]`, `{}` of a map).
    NonZero,
    /// Always there, with the zero value of its type when not sent. Objects are of this sort
    /// even when they are marked omitempty, since Go never takes a struct to be empty.
    Always,
    /// As it was sent, null included: fields of a custom resource.
    AsSent,
}

/// Tags of a strategic merge patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

/// The protobuf encoding of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proto {
    pub number: u32,
    pub wire: Wire,
    /// Numbers of the embedded messages around the field, outermost first. JSON shows them flattened.
    pub within: Box<[u32]>,
}

/// The protobuf wire type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Varint,
    Bytes,
    Fixed32,
    Fixed64,
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    Bool,
    String,
    /// Base64 in JSON.
    Bytes,
    Int32,
    Int64,
    /// A double.
    Number,
    /// An int32 or a string.
    IntOrString,
    Quantity,
    /// RFC 3339 in UTC with whole seconds.
    Time,
    /// RFC 3339 in UTC with microseconds.
    MicroTime,
    /// `1m30s` in JSON, nanoseconds in protobuf.
    Duration,
    /// An embedded object (`RawExtension`): kept as sent, null when absent.
    Raw,
    /// Any JSON, kept as sent.
    Any,
    Map(Box<MapType>),
    List(Box<ListType>),
    Object(DefId),
    /// The unions of apiextensions: an object of the definition, or what the alternative says.
    SchemaOr(Alternative, DefId),
}

/// What stands beside a schema in `JSONSchemaPropsOr…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    Bool,
    /// A list of schemas.
    List,
    /// A list of strings.
    Strings,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MapType {
    pub value: Type,
    pub atomic: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListType {
    pub item: Type,
    pub kind: ListKind,
}

/// `x-kubernetes-list-type`: how a list is owned and merged by server-side apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// By the values of these keys.
    Map(Box<[Box<str>]>),
}

impl Model {
    pub fn new() -> Self {
        Self::default()
    }

    /// A model that knows all that `base` knows, and more.
    pub fn on(base: &'static Model) -> Self {
        Self { base: Some(base), base_len: base.len(), ..Self::default() }
    }

    /// How many definitions there are, with those of the base.
    fn len(&self) -> u32 {
        self.base_len + self.definitions.len() as u32
    }

    /// The definition of that name.
    pub fn definition(&self, name: &str) -> Option<&Definition> {
        self.id(name).map(|id| self.get(id))
    }

    pub fn id(&self, name: &str) -> Option<DefId> {
        let own = self.by_name.get(name).copied();
        own.or_else(|| self.base.and_then(|base| base.id(name)))
    }

    /// The id of a name that is known to be there.
    ///
    /// # Panics
    /// When the model lacks it: a mistake of the program, not of its input.
    pub fn expect(&self, name: &str) -> DefId {
        self.id(name).unwrap_or_else(|| panic!("the schema model lacks {name}"))
    }

    pub fn get(&self, id: DefId) -> &Definition {
        match self.base {
            Some(base) if id.0 < self.base_len => base.get(id),
            _ => &self.definitions[(id.0 - self.base_len) as usize],
        }
    }

    /// The model's own definitions, without those of the base.
    pub fn definitions(&self) -> impl Iterator<Item = (DefId, &Definition)> {
        let numbered = self.definitions.iter().enumerate();
        numbered.map(|(i, d)| (DefId(self.base_len + i as u32), d))
    }

    /// The definition of a kind.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<DefId> {
        let kind =
            GroupVersionKind { group: group.into(), version: version.into(), kind: kind.into() };
        let own = self.by_kind.get(&kind).copied();
        own.or_else(|| self.base.and_then(|base| base.of_kind(group, version, &kind.kind)))
    }

    /// Adds a definition; one of the same name is replaced and keeps its id, so a definition may be
    /// referred to (by [`Model::reserve`]) before it is there.
    ///
    /// # Panics
    /// When a built-in one has more than [`FIELDS_MAX`] fields, which typed decoding can tell apart.
    pub fn add(&mut self, mut definition: Definition) -> DefId {
        let typed = self.base.is_none();
        assert!(
            !typed || definition.fields.len() <= FIELDS_MAX,
            "{} has too many fields",
            definition.name
        );
        definition.fields.sort_by(|a, b| a.name.cmp(&b.name));
        let constant = |f: &Field| matches!(f.presence, Presence::Always | Presence::PointerOrNull);
        let fields = definition.fields.iter().enumerate();
        definition.constant = fields.filter(|(_, f)| constant(f)).map(|(i, _)| i as u16).collect();
        let id = self.reserve(&definition.name.clone());
        self.defaulting = OnceLock::new();
        // Options and events belong to every group; such a definition is no group's kind.
        if let [kind] = definition.kinds.as_slice() {
            self.by_kind.insert(kind.clone(), id);
        }
        self.definitions[(id.0 - self.base_len) as usize] = definition;
        id
    }

    /// The id that a name has or will have.
    pub fn reserve(&mut self, name: &str) -> DefId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let id = DefId(self.len());
        self.definitions.push(Definition::new(name, vec![], Box::default(), false));
        self.by_name.insert(name.into(), id);
        id
    }
}

/// The most fields that one built-in definition can have.
pub const FIELDS_MAX: usize = 128;

impl Definition {
    pub fn new(
        name: &str,
        kinds: Vec<GroupVersionKind>,
        fields: Box<[Field]>,
        atomic: bool,
    ) -> Self {
        Self {
            name: name.into(),
            kinds,
            fields,
            atomic,
            open: false,
            constant: Box::default(),
            message: OnceLock::new(),
        }
    }

    /// The parts of the protobuf message, sorted by number; empty when it has no such encoding.
    pub fn message(&self) -> &[Part] {
        self.message.get_or_init(|| {
            let fields = self.fields.iter().enumerate().filter_map(|(index, field)| {
                let proto = field.proto.as_ref().filter(|_| !self.is_type_meta(field))?;
                Some((&*proto.within, proto.number, index as u16))
            });
            laid_out(&fields.collect::<Vec<_>>())
        })
    }

    /// The type of a whole object stands in the envelope; in the message its numbers are others'.
    fn is_type_meta(&self, field: &Field) -> bool {
        let Some(Proto { number, within, .. }) = &field.proto else { return false };
        let is_other = |f: &Field| {
            f.name != field.name
                && f.proto.as_ref().is_some_and(|p| p.number == *number && p.within.is_empty())
        };
        matches!((&*field.name, number), ("kind", 1) | ("apiVersion", 2))
            && within.is_empty()
            && (!self.kinds.is_empty() || self.fields.iter().any(is_other))
    }

    /// The field of that name; case matters, as it does to a Kubernetes server.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.index(name).map(|i| &self.fields[i])
    }

    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.fields.binary_search_by(|f| (*f.name).cmp(name)).ok()
    }

    /// The bare Go name: `PodSpec`.
    pub fn go_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// The message of fields, each given as its embedding, its number and its index.
fn laid_out(fields: &[(&[u32], u32, u16)]) -> Box<[Part]> {
    let mut parts: Vec<Part> = Vec::new();
    for (within, number, index) in fields {
        match within.first() {
            None => parts.push(Part::Field { number: *number, index: *index }),
            Some(outer) if parts.iter().any(|p| p.number() == *outer) => {}
            Some(outer) => {
                let inside = fields.iter().filter(|(w, ..)| w.first() == Some(outer));
                let inside: Vec<_> = inside.map(|(w, n, i)| (&w[1..], *n, *i)).collect();
                parts.push(Part::Embedded { number: *outer, parts: laid_out(&inside) });
            }
        }
    }
    parts.sort_by_key(Part::number);
    parts.into()
}
