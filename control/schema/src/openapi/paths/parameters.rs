//! The parameters of operations. What they are called and which operation has which is Kubernetes'
//! (`api/openapi-spec`); clients generate code from it, and kubectl asks whether one is there.

use serde_json::{Value, json};

use crate::openapi::Dialect;

/// A parameter in the query or the path: name, type, what it is for.
pub(super) type Parameter = (&'static str, &'static str, &'static str);

pub(super) const PRETTY: Parameter = (
    "pretty",
    "string",
    "Whether the answer is indented for people: 'true' or 'false'. By default only browsers, curl and wget get it so.",
);
const DRY_RUN: Parameter =
    ("dryRun", "string", "With 'All', everything is done except that nothing is stored.");
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name under which changes are recorded, of at most 128 printable characters; required for apply.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What to do about unknown and duplicate fields: Ignore drops them, Warn (the default) says so in a warning, Strict refuses the request.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "An apply takes fields over from their managers. Not for the other kinds of patches.",
);

/// Of creates and replacements.
pub(super) const WRITE: [Parameter; 3] = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];

/// Of patches.
pub(super) const PATCH: [Parameter; 4] = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];

/// Of lists and of the deletion of collections.
const SELECT: [Parameter; 8] = [
    ("continue", "string", "Where to go on with a list, from the part before."),
    ("fieldSelector", "string", "Restricts the list of returned objects by their fields."),
    ("labelSelector", "string", "Restricts the list of returned objects by their labels."),
    (
        "limit",
        "integer",
        "How many objects to answer at most; metadata.continue of the list then tells where to go on.",
    ),
    ("resourceVersion", "string", "The revision that the answer is based on."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
    (
        "sendInitialEvents",
        "boolean",
        "A watch begins with the objects that there are, and a BOOKMARK event after them.",
    ),
    ("timeoutSeconds", "integer", "How long a list or watch may take."),
];

const WATCH: [Parameter; 2] = [
    ("allowWatchBookmarks", "boolean", "Asks for BOOKMARK events in a watch."),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources: they are answered as a stream of events, from resourceVersion on.",
    ),
];

/// Of deletions.
pub(super) const DELETE: [Parameter; 4] = [
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "How long the object may take to go; 0 is at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    (
        "propagationPolicy",
        "string",
        "What happens to dependents: Orphan, Background or Foreground.",
    ),
];

const CONTAINER: Parameter =
    ("container", "string", "The container; needed when the pod has several.");
const STREAMS: [Parameter; 4] = [
    ("stderr", "boolean", "Connects the standard error stream."),
    ("stdin", "boolean", "Connects the standard input stream."),
    ("stdout", "boolean", "Connects the standard output stream."),
    ("tty", "boolean", "Gives the process a terminal."),
];

const LOG: [Parameter; 8] = [
    ("follow", "boolean", "Goes on with what is written from now on."),
    (
        "insecureSkipTLSVerifyBackend",
        "boolean",
        "Takes the log from a node whose certificate does not verify.",
    ),
    ("limitBytes", "integer", "How many bytes to answer at most."),
    ("previous", "boolean", "The log of the container that ran before a restart."),
    ("sinceSeconds", "integer", "How old the first line may be."),
    ("stream", "string", "Which stream of the container: All, Stdout or Stderr."),
    ("tailLines", "integer", "How many lines from the end to begin with."),
    ("timestamps", "boolean", "Begins each line with its time."),
];

/// Those of lists, which can be watches too.
pub(super) fn list() -> Vec<Parameter> {
    [&SELECT[..], &WATCH[..]].concat()
}

pub(super) fn delete_collection() -> Vec<Parameter> {
    [&SELECT[..], &DELETE[..]].concat()
}

pub(super) fn log() -> Vec<Parameter> {
    [&[CONTAINER][..], &LOG[..]].concat()
}

/// Those of a connection, by the kind of its options.
pub(super) fn connection(options: &str) -> Vec<Parameter> {
    match options {
        "PodExecOptions" => {
            let command = ("command", "string", "A word of the command; may be there repeatedly.");
            [&[command, CONTAINER][..], &STREAMS[..]].concat()
        }
        "PodAttachOptions" => [&[CONTAINER][..], &STREAMS[..]].concat(),
        "PodPortForwardOptions" => vec![("ports", "integer", "The ports to forward to.")],
        _ => vec![("path", "string", "The path of the URL that is asked for.")],
    }
}

/// A parameter as a document shows it.
pub(super) fn schema((name, ty, text): Parameter, place: &str, dialect: Dialect) -> Value {
    let mut parameter = json!({ "name": name, "in": place, "description": text });
    if place == "path" {
        parameter["required"] = json!(true);
    }
    match dialect {
        Dialect::V2 => {
            parameter["type"] = json!(ty);
            parameter["uniqueItems"] = json!(true);
        }
        Dialect::V3 => parameter["schema"] = json!({ "type": ty, "uniqueItems": true }),
    }
    parameter
}
