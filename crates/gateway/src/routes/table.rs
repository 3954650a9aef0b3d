//! The table of routes: what each needs. `routes!` makes the routes and the table from the same lines, so a route without
//! an entry does not compile. `docs/reference/scopes.md` is the table for people; a test compares the two.

use std::{collections::HashMap, sync::LazyLock};

use actix_web::http::Method;
use model::access::Scope;

use super::ROUTES;

/// One method of a path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteRule {
    /// `GET` counts for HEAD too.
    pub(crate) method: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "the test of openapi.json reads it"))]
    pub(crate) answers_head: bool,
    pub(crate) path: &'static str,
    pub(crate) need: Need,
    pub(crate) subject: Subject,
}

/// What a request needs, if requests need keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: anybody may send it.
    Nothing,
    /// A key, whatever it may do.
    AnyKey,
    /// A key with a scope.
    Has(Scope),
    /// A key with both scopes: what a page does for its reader needs the scope of the page and that of what is done.
    Both(Scope, Scope),
    /// Nothing: anybody may send it, and sees more with a key.
    Optional,
    /// A key with `admin:read`, unless `auth.open_metrics` is set.
    Metrics,
    /// A key with `admin:read`, unless `auth.open_health` is set.
    Health,
}

/// What a route is about: where the patterns and the namespace of a key apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Nothing that a key can be limited to.
    Nothing,
    /// The queue in the path.
    Queue,
    /// The channel in the path.
    Channel,
    /// The job in the path.
    Job,
    /// The workflow in the path.
    Workflow,
    /// The cron entry in the path.
    Cron,
    /// The subscription in the path.
    Subscription,
    /// What the request names: the handler checks each.
    Named,
    /// A list: the handler leaves out what the key does not see.
    List,
    /// The whole installation: only for keys without patterns and namespace.
    Everything,
    /// Another key: the handler checks that the key in use may do at least as much.
    Key,
}

/// The routes that every service has, which `common::health` registers.
const SHARED_ROUTES: [RouteRule; 4] = [
    RouteRule {
        method: "GET",
        answers_head: true,
        path: "/health/live",
        need: Need::Nothing,
        subject: Subject::Nothing,
    },
    RouteRule {
        method: "GET",
        answers_head: true,
        path: "/health/ready",
        need: Need::Nothing,
        subject: Subject::Nothing,
    },
    RouteRule {
        method: "GET",
        answers_head: true,
        path: "/health/startup",
        need: Need::Nothing,
        subject: Subject::Nothing,
    },
    RouteRule { method: "GET", answers_head: true, path: "/metrics", need: Need::Metrics, subject: Subject::Nothing },
];

/// Every route.
pub(crate) fn rules() -> impl Iterator<Item = &'static RouteRule> {
    SHARED_ROUTES.iter().chain(ROUTES)
}

/// The routes of one path.
#[derive(Debug)]
pub(crate) struct PathRules {
    pub(crate) path: &'static str,
    rules: Vec<&'static RouteRule>,
}

impl PathRules {
    /// The rule of a method. Without one the router answers 405.
    pub(crate) fn of_method(&self, method: &Method) -> Option<&'static RouteRule> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.rules.iter().copied().find(|rule| rule.method == method.as_str())
    }
}

static BY_PATH: LazyLock<HashMap<&'static str, PathRules>> = LazyLock::new(|| {
    let mut by_path: HashMap<&'static str, PathRules> = HashMap::new();
    for rule in rules() {
        by_path.entry(rule.path).or_insert_with(|| PathRules { path: rule.path, rules: Vec::new() }).rules.push(rule);
    }
    by_path
});

/// The rules of a path without parameters: one look-up, where the router compares one pattern after the other.
pub(crate) fn rules_of_fixed(path: &str) -> Option<&'static PathRules> {
    BY_PATH.get(path).filter(|_| !path.contains('{'))
}

/// The rules of a path as the router knows it: `/ojs/v1/jobs/{id}`.
pub(crate) fn rules_of(pattern: &str) -> Option<&'static PathRules> {
    BY_PATH.get(pattern)
}

/// Makes the routes and the table of what they need.
///
/// A line reads `METHOD handler => need, subject;`. `GET` answers HEAD too, `VISIT` does not: it changes something or
/// never ends. Pages of other sites may read the paths
/// marked `(read_only_cors)`.
macro_rules! routes {
    ($($path:literal $(($wrap:ident))? { $($method:ident $handler:path => $need:expr, $subject:ident;)+ })+) => {
        /// Every route of the gateway itself.
        pub(crate) const ROUTES: &[table::RouteRule] = &[
            $($(table::RouteRule {
                method: table::method_name!($method),
                answers_head: table::answers_head!($method),
                path: $path,
                need: $need,
                subject: table::Subject::$subject,
            },)+)+
        ];

        /// Adds every route. Pages from `origins` may read channels.
        pub(crate) fn configure(config: &mut web::ServiceConfig, origins: &[Origin]) {
            $({
                let resource = web::resource($path).guard(guard::fn_guard(|context| Caller::is_admitted(context, $path)));
                $(let resource = table::with_method!(resource, $method, $handler);)+
                $(let resource = resource.wrap(cross_origin::$wrap(origins));)?
                config.service(resource);
            })+
        }
    };
}
pub(super) use routes;

macro_rules! method_name {
    (VISIT) => {
        "GET"
    };
    ($method:ident) => {
        stringify!($method)
    };
}
pub(super) use method_name;

macro_rules! answers_head {
    (GET) => {
        true
    };
    ($method:ident) => {
        false
    };
}
pub(super) use answers_head;

macro_rules! with_method {
    ($resource:ident, GET, $handler:path) => {
        $resource.route(web::get().to($handler)).route(web::head().to($handler))
    };
    ($resource:ident, VISIT, $handler:path) => {
        $resource.route(web::get().to($handler))
    };
    ($resource:ident, POST, $handler:path) => {
        $resource.route(web::post().to($handler))
    };
    ($resource:ident, PUT, $handler:path) => {
        $resource.route(web::put().to($handler))
    };
    ($resource:ident, PATCH, $handler:path) => {
        $resource.route(web::patch().to($handler))
    };
    ($resource:ident, DELETE, $handler:path) => {
        $resource.route(web::delete().to($handler))
    };
}
pub(super) use with_method;
