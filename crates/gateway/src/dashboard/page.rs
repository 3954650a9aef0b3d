//! What every page has: language, theme, navigation, the rights of its reader, the token of its forms.

use std::{fmt::Display, time::Instant};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        StatusCode,
        header::{self, HeaderMap},
    },
    web::Data,
};
use askama::Template;
use common::time::Millis;
use model::access::Scope;
use store::jobs::MaintenanceMode;

use super::{
    assets,
    live::{
        digest,
        known::{Parts, Problem},
    },
    plain::{Number, encode},
    session::{SessionCookie, cookie as read_cookie},
    texts::Language,
};
use crate::{auth::Caller, error::ApiError, request_check::query_pairs, services::Services};

/// The cookie with the theme that somebody chose.
pub(super) const THEME_COOKIE: &str = "galley_theme";

/// What pages may load and do: their own style sheet, script and icon, and requests to where they come from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Stands for the token of a reader in parts that are rendered once for all. No text has it: `<` is escaped in texts.
const SHARED_TOKEN: &str = "<csrf>";

/// The themes; the first follows the system.
pub(super) const THEMES: [&str; 3] = ["auto", "light", "dark"];

/// What every page has.
pub(crate) struct Page {
    pub(super) language: Language,
    pub(super) theme: &'static str,
    /// The part of the navigation that it belongs to.
    section: &'static str,
    /// Its own address, to come back to.
    address: String,
    access: Option<Caller>,
    cookie: SessionCookie,
    /// What makes a browser without a cookie keep this one.
    new_cookie: Option<String>,
    /// Whether keys are demanded.
    is_keyed: bool,
    /// A client that does not ask for HTML by name gets no script, which it could not run.
    has_script: bool,
    note: Option<(String, String)>,
    /// Maintenance mode, if it is on: every page says so.
    maintenance: Option<MaintenanceMode>,
    pub(super) now: Millis,
    began_at: Instant,
}

/// An entry of the navigation.
pub(crate) struct NavigationItem {
    pub(super) path: &'static str,
    pub(super) text: &'static str,
    pub(super) is_current: bool,
    /// The letter of its shortcut, after `g`.
    pub(super) letter: &'static str,
}

/// Sections: path, key of its text, letter of its shortcut, and what a key needs to see it.
const SECTIONS: [(&str, &str, &str, Scope); 13] = [
    ("/", "nav.overview", "o", Scope::AdminRead),
    ("/ui/jobs", "nav.jobs", "j", Scope::JobsRead),
    ("/ui/queues", "nav.queues", "q", Scope::AdminRead),
    ("/ui/dead-letters", "nav.dead", "d", Scope::JobsRead),
    ("/ui/workflows", "nav.workflows", "f", Scope::JobsRead),
    ("/ui/cron", "nav.cron", "c", Scope::JobsRead),
    ("/ui/workers", "nav.workers", "w", Scope::AdminRead),
    ("/ui/channels", "nav.channels", "n", Scope::ChannelsSubscribe),
    ("/ui/subscriptions", "nav.subscriptions", "s", Scope::Subscriptions),
    ("/ui/push-rules", "nav.push", "p", Scope::AdminRead),
    ("/ui/try", "nav.try", "t", Scope::JobsRead),
    ("/ui/keys", "nav.keys", "k", Scope::AdminRead),
    ("/ui/audit", "nav.audit", "a", Scope::AdminRead),
];

/// Whether a client asks for HTML by name, as browsers do when they open a page.
pub(super) fn accepts_html(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains("text/html"))
}

impl Page {
    /// The page that answers a request.
    pub(super) fn of(request: &HttpRequest, section: &'static str) -> Self {
        let headers = request.headers();
        let known = SessionCookie::of(headers);
        let services = request.app_data::<Data<Services>>();
        let chosen = read_cookie(headers, THEME_COOKIE);
        let pairs = query_pairs(request.query_string());
        let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let note = value("note").filter(|note| Language::has(&format!("note.{note}")));
        let query = Some(request.query_string()).filter(|query| !query.is_empty() && note.is_none());
        let address = query.map_or_else(|| request.path().to_owned(), |query| format!("{}?{query}", request.path()));
        let is_new = known.is_none();
        let cookie = known.unwrap_or_else(SessionCookie::generate);
        let new_cookie = is_new.then(|| cookie.to_header(is_tls(request)));
        Self {
            language: Language::of(headers),
            theme: THEMES.into_iter().find(|theme| chosen == Some(*theme)).unwrap_or(THEMES[0]),
            section,
            address,
            access: Caller::of(request).ok(),
            new_cookie,
            cookie,
            is_keyed: services.is_some_and(|services| services.auth.is_demanded()),
            has_script: accepts_html(headers),
            note: note.map(|note| (note, value("of").unwrap_or_default())),
            maintenance: None,
            now: services.map_or_else(store::local_now, |services| services.redis.estimated_now()),
            began_at: Instant::now(),
        }
    }

    /// The same, with what every page of a section says.
    pub(super) async fn open(request: &HttpRequest, section: &'static str) -> Self {
        let mut page = Self::of(request, section);
        if let Some(services) = request.app_data::<Data<Services>>().filter(|_| !page.is_anonymous()) {
            // A page that needs Redis says itself that it is away
            page.maintenance = services.jobs.maintenance_mode().await.ok().flatten();
        }
        page
    }

    /// The answer with a page.
    pub(super) fn render(&self, template: &impl Template) -> Result<HttpResponse, ApiError> {
        self.render_with(StatusCode::OK, template)
    }

    pub(super) fn render_with(&self, status: StatusCode, template: &impl Template) -> Result<HttpResponse, ApiError> {
        let html = template.render().map_err(ApiError::internal)?;
        let mut response = HttpResponse::build(status);
        response
            .content_type("text/html; charset=utf-8")
            .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .insert_header((header::REFERRER_POLICY, "same-origin"))
            .insert_header((header::CROSS_ORIGIN_OPENER_POLICY, "same-origin"))
            .insert_header((header::VARY, "Accept, Accept-Language, Cookie"))
            .insert_header(("server-timing", format!("page;dur={:.1}", self.began_at.elapsed().as_secs_f64() * 1e3)));
        if let Some(cookie) = self.new_cookie.as_deref().filter(|_| self.has_script) {
            response.insert_header((header::SET_COOKIE, cookie));
        }
        Ok(response.body(html))
    }

    /// A text.
    pub(super) fn t(&self, key: &str) -> &'static str {
        self.language.text(key)
    }

    /// A text with one value in it.
    pub(super) fn f(&self, key: &str, value: impl Display) -> String {
        self.language.fill(key, &[&value])
    }

    /// A text with two values in it.
    pub(super) fn f2(&self, key: &str, first: impl Display, second: impl Display) -> String {
        self.language.fill(key, &[&first, &second])
    }

    /// A text with a number in it, written as people read it.
    pub(super) fn n(&self, key: &str, number: impl Number) -> String {
        self.language.fill(key, &[&self.num(number)])
    }

    /// Whether the reader may do what needs these scopes. A change needs `admin:write` too.
    pub(super) fn may_write(&self, scope: Scope) -> bool {
        self.may(Scope::AdminWrite) && self.may(scope)
    }

    /// Whether the reader may administer.
    pub(super) fn may_admin(&self) -> bool {
        self.may(Scope::AdminWrite)
    }

    /// Whether the reader may change jobs.
    pub(super) fn may_jobs(&self) -> bool {
        self.may_write(Scope::JobsWrite)
    }

    /// Whether the reader sees the whole installation.
    pub(super) fn sees_all(&self) -> bool {
        self.access.as_ref().is_some_and(|access| access.may(Scope::AdminRead) && access.is_unlimited())
    }

    pub(super) fn may_publish(&self) -> bool {
        self.may_write(Scope::ChannelsPublish)
    }

    pub(super) fn may_subscriptions(&self) -> bool {
        self.may_write(Scope::Subscriptions)
    }

    pub(super) fn may(&self, scope: Scope) -> bool {
        self.access.as_ref().is_some_and(|access| access.may(scope))
    }

    /// Whether a key is needed and none was given.
    pub(super) fn is_anonymous(&self) -> bool {
        self.is_keyed && self.access.as_ref().is_none_or(|access| access.id.is_empty())
    }

    /// The name of the key in use; empty without keys.
    pub(super) fn key_name(&self) -> &str {
        self.access.as_ref().filter(|_| self.is_keyed).map_or("", |access| access.name.as_str())
    }

    /// The field that every form has.
    pub(super) fn token_field(&self) -> String {
        format!(r#"<input type="hidden" name="csrf" value="{}">"#, self.cookie.form_token())
    }

    /// The same field of a part that all readers share.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    pub(super) fn shared_token_field(&self) -> String {
        format!(r#"<input type="hidden" name="csrf" value="{SHARED_TOKEN}">"#)
    }

    /// Whether a shared part has a form.
    pub(super) fn has_token(shared: &str) -> bool {
        shared.contains(SHARED_TOKEN)
    }

    /// A shared part with the token of this reader.
    pub(super) fn with_token(&self, shared: &str) -> String {
        shared.replace(SHARED_TOKEN, &self.cookie.form_token())
    }

    /// What is wrong, in words.
    pub(super) fn problem(&self, problem: &Problem) -> String {
        self.f2(problem.text, &problem.subject, self.num(problem.number))
    }

    #[expect(clippy::unused_self, reason = "templates call methods")]
    pub(super) fn asset(&self, name: &str) -> &'static str {
        assets::path_of(name)
    }

    pub(super) fn has_script(&self) -> bool {
        self.has_script
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The sections that the reader may see.
    pub(super) fn navigation(&self) -> Vec<NavigationItem> {
        let seen = SECTIONS.into_iter().filter(|(path, .., scope)| *path == "/" || self.may(*scope));
        let item = |(path, text, letter, _)| NavigationItem {
            path,
            text: self.t(text),
            is_current: path == self.section,
            letter,
        };
        seen.map(item).collect()
    }

    /// The languages to choose from: tag, name, whether it is this one.
    pub(super) fn languages(&self) -> [(&'static str, &'static str, bool); 2] {
        Language::ALL.map(|language| (language.tag(), language.own_name(), language == self.language))
    }

    /// The themes to choose from: name, text, whether it is this one.
    pub(super) fn themes(&self) -> [(&'static str, &'static str, bool); 3] {
        [("auto", "theme.auto"), ("light", "theme.light"), ("dark", "theme.dark")]
            .map(|(theme, key)| (theme, self.t(key), theme == self.theme))
    }

    /// What was just done, for its reader.
    pub(super) fn note(&self) -> Option<String> {
        self.note.as_ref().map(|(note, of)| self.f(&format!("note.{note}"), of))
    }

    /// The search for jobs with a tag.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    pub(super) fn tag_search(&self, tag: &str) -> String {
        if tag.contains([' ', '"']) { format!("tag:\"{}\"", tag.replace('"', "")) } else { format!("tag:{tag}") }
    }

    /// Maintenance mode, if it is on.
    pub(super) fn maintenance(&self) -> Option<&MaintenanceMode> {
        self.maintenance.as_ref()
    }

    /// A word for the state of a job.
    pub(super) fn state(&self, state: &str) -> &'static str {
        let key = format!("state.{state}");
        if Language::has(&key) { self.t(&key) } else { self.t("state.unknown") }
    }

    /// Texts that the script shows: key and text.
    pub(super) fn script_texts(&self) -> [(&'static str, &'static str); 4] {
        [("undo", "script.undo"), ("undone", "script.undone"), ("copied", "script.copied"), ("lost", "script.lost")]
            .map(|(name, key)| (name, self.t(key)))
    }
}

/// What tells a stream which parts a page has: a few digits for each.
pub(super) fn fingerprint(parts: &Parts) -> String {
    parts.iter().map(|(name, html)| format!("{name}-{}", digest(html))).collect::<Vec<_>>().join(".")
}

/// Whether the browser reached us, or the proxy in front, with TLS.
pub(super) fn is_tls(request: &HttpRequest) -> bool {
    let services = request.app_data::<Data<Services>>();
    services.is_some_and(|services| services.settings.gateway.tls_cert_file.is_some())
        || request.headers().get("x-forwarded-proto").is_some_and(|scheme| scheme.as_bytes() == b"https")
}

/// Leads the reader back to a page of ours, with a word about what was done.
pub(super) fn redirect(to: &str, note: &str, of: &str) -> HttpResponse {
    let path = local_path(to);
    let sign = if path.contains('?') { '&' } else { '?' };
    let mut location = path.to_owned();
    if !note.is_empty() {
        location = format!("{path}{sign}note={note}&of={}", encode(of));
    }
    HttpResponse::SeeOther()
        .insert_header((header::LOCATION, location))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish()
}

/// A path of this gateway: an address of another site becomes the overview.
pub(super) fn local_path(to: &str) -> &str {
    let is_local = to.starts_with('/') && !to.starts_with("//") && !to.contains('\\') && !to.contains(char::is_control);
    if is_local { to } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_gateway_are_led_to() {
        for (to, path) in [
            ("/ui/jobs?q=a", "/ui/jobs?q=a"),
            ("//evil.example", "/"),
            ("https://evil.example", "/"),
            ("/\\evil.example", "/"),
            ("", "/"),
            ("/a\r\nx: y", "/"),
        ] {
            assert_eq!(local_path(to), path, "{to}");
        }
    }
}
