//! What changed between two objects, and what an object says: as sets of fields.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, Part, Set};
use super::shape::{Place, Shape, content, items};

/// The outcome of a comparison at one point.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change<'a> {
    pub added: Part<'a>,
    pub removed: Part<'a>,
    pub modified: Part<'a>,
}

impl<'a> Change<'a> {
    fn leaf(old: Option<&Value>, new: Option<&Value>) -> Self {
        let mut change = Self::default();
        match (old, new) {
            (None, _) => change.added.member = true,
            (_, None) => change.removed.member = true,
            (Some(old), Some(new)) => change.modified.member = old != new,
        }
        change
    }

    fn push(&mut self, element: Element<'a>, below: Change<'a>) {
        let Change { added, removed, modified } = below;
        let some = |part: &Part<'_>| part.member || !part.children.is_empty();
        if some(&removed) {
            self.removed.children.push(element.clone(), removed);
        }
        if some(&modified) {
            self.modified.children.push(element.clone(), modified);
        }
        self.added.children.push(element, added);
    }

    fn sort(&mut self) {
        for part in [&mut self.added, &mut self.removed, &mut self.modified] {
            part.children.sort();
        }
    }
}

/// Compares two values; at least one is there.
pub(crate) fn compare<'a>(
    place: Place<'_>,
    old: Option<&'a Value>,
    new: Option<&'a Value>,
) -> Change<'a> {
    if let (None, Some(new)) = (old, new) {
        return Change { added: added(place, new), ..Change::default() };
    }
    let shape = place.shape(new.or(old));
    let mut change = match &shape {
        Shape::Leaf => return Change::leaf(old, new),
        Shape::Object(_) | Shape::Map(_) => match (content(old), content(new)) {
            // Nothing in both: this tells null from empty and from absent.
            (None, None) => return Change::leaf(old, new),
            (old, new) => compare_maps(place, &shape, old, new),
        },
        Shape::List(item, kind) => match (items(old), items(new)) {
            (None, None) => return Change::leaf(old, new),
            (old, new) => {
                let name = |value| place.item(item, kind, value);
                compare_lists(Place::new(place.model, item), &name, old, new)
            }
        },
    };
    change.added.member |= old.is_none();
    change.removed.member |= new.is_none();
    change
}

fn compare_maps<'a>(
    place: Place<'_>,
    shape: &Shape<'_>,
    old: Option<&'a Map<String, Value>>,
    new: Option<&'a Map<String, Value>>,
) -> Change<'a> {
    let mut change = Change::default();
    let mut olds = old.into_iter().flatten().peekable();
    let mut news = new.into_iter().flatten().peekable();
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return change,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        let Some((key, _)) = old.or(new) else { return change };
        let (below, _) = place.key(shape, key);
        change.push(Element::field(key), compare(below, old.map(|(_, v)| v), new.map(|(_, v)| v)));
    }
}

fn compare_lists<'a>(
    place: Place<'_>,
    name: &dyn Fn(&'a Value) -> Option<Element<'a>>,
    old: Option<&'a Vec<Value>>,
    new: Option<&'a Vec<Value>>,
) -> Change<'a> {
    type Found<'a> = (Vec<&'a Value>, Vec<&'a Value>);
    let mut found: BTreeMap<Element<'a>, Found<'a>> = BTreeMap::new();
    for item in old.into_iter().flatten() {
        if let Some(element) = name(item) {
            found.entry(element).or_default().0.push(item);
        }
    }
    for item in new.into_iter().flatten() {
        if let Some(element) = name(item) {
            found.entry(element).or_default().1.push(item);
        }
    }
    let mut change = Change::default();
    for (element, (olds, news)) in found {
        let (old, new) = (olds.first().copied(), news.first().copied());
        let below = match (olds.len(), news.len()) {
            (0 | 1, 0 | 1) => compare(place, old, new),
            // Items that are there several times are owned as one.
            (2.., 2..) => {
                let mut below = Change::default();
                below.modified.member = olds != news;
                below
            }
            (2.., _) => {
                let mut below =
                    if new.is_some() { compare(place, None, new) } else { Change::default() };
                below.removed.member = true;
                below
            }
            _ => {
                let mut below =
                    if old.is_some() { compare(place, old, None) } else { Change::default() };
                below.added.member = true;
                below
            }
        };
        change.push(element, below);
    }
    change.sort();
    change
}

/// What is added by a value where nothing was: most of a new object is that.
fn added<'a>(place: Place<'_>, value: &'a Value) -> Part<'a> {
    let shape = place.shape(Some(value));
    let children = match (&shape, value) {
        (Shape::Object(_) | Shape::Map(_), Value::Object(map)) => {
            let mut set = Set::with_capacity(map.len());
            for (key, value) in map {
                set.push(Element::field(key), added(place.key(&shape, key).0, value));
            }
            set
        }
        (Shape::List(item, kind), Value::Array(list)) => {
            let named = list.iter().filter_map(|i| Some((place.item(item, kind, i)?, i)));
            let mut named: Vec<(Element<'a>, &'a Value)> = named.collect();
            named.sort_by(|(a, _), (b, _)| a.cmp(b));
            let place = Place::new(place.model, item);
            let mut set = Set::with_capacity(named.len());
            let mut named = named.into_iter().peekable();
            while let Some((element, item)) = named.next() {
                let mut part = Part { member: true, ..Part::default() };
                // Items that are there several times are owned as one.
                let mut several = false;
                while named.next_if(|(next, _)| *next == element).is_some() {
                    several = true;
                }
                if !several {
                    part = added(place, item);
                }
                set.push(element, part);
            }
            set
        }
        _ => Set::default(),
    };
    Part { member: true, children }
}

/// The fields that a value says.
pub(crate) fn said<'a>(place: Place<'_>, value: &'a Value) -> Part<'a> {
    let mut part = Part::default();
    let shape = place.shape(Some(value));
    match (&shape, value) {
        (Shape::Leaf, _) => part.member = true,
        (Shape::Object(_) | Shape::Map(_), Value::Object(map)) => {
            for (key, value) in map {
                let (below, declared) = place.key(&shape, key);
                let mut said = said(below, value);
                let nothing = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                said.member |= nothing || !declared;
                part.children.push(Element::field(key), said);
            }
        }
        (Shape::List(item, kind), Value::Array(list)) => {
            part.children = said_items(Place::new(place.model, item), list, &|value| {
                place.item(item, kind, value)
            });
        }
        _ => {}
    }
    part
}

fn said_items<'a>(
    place: Place<'_>,
    list: &'a [Value],
    name: &dyn Fn(&'a Value) -> Option<Element<'a>>,
) -> Set<'a> {
    let mut found: BTreeMap<Element<'a>, Vec<&'a Value>> = BTreeMap::new();
    for item in list {
        if let Some(element) = name(item) {
            found.entry(element).or_default().push(item);
        }
    }
    let mut set = Set::default();
    for (element, items) in found {
        let mut part = match items.as_slice() {
            [one] => said(place, one),
            _ => Part::default(),
        };
        part.member = true;
        set.push(element, part);
    }
    set
}
