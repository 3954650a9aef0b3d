//! Login and logout, language and theme, and pages about errors.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::Data,
};
use askama::Template;

use super::{
    is_page,
    page::{Page, THEME_COOKIE, THEMES, accepts_html, is_tls, local_path, redirect},
    session::{Form, SessionCookie},
    texts::{LANGUAGE_COOKIE, Language},
};
use crate::{
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
    routes::ApiResult,
    services::Services,
};

/// How long a browser keeps language and theme: a year.
const PREFERENCE_SECONDS: u32 = 31_536_000;

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    page: Page,
    /// Where to go after the login.
    to: String,
    /// Why the last login failed.
    problem: Option<&'static str>,
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    page: Page,
    title: &'static str,
    advice: &'static str,
    message: &'a str,
    request_id: &'a str,
    /// Whether the page loads itself again.
    tries_again: bool,
}

pub(crate) async fn login_page(request: HttpRequest) -> ApiResult {
    let to = query_pairs(request.query_string()).into_iter().find(|(name, _)| name == "to").map(|(_, to)| to);
    let to = local_path(to.as_deref().unwrap_or("/")).to_owned();
    let page = Page::of(&request, "");
    page_of_login(page, StatusCode::OK, to, None)
}

fn page_of_login(page: Page, status: StatusCode, to: String, problem: Option<&'static str>) -> ApiResult {
    let template = LoginPage { page, to, problem };
    template.page.render_with(status, &template)
}

/// Checks a key and starts a session with it.
pub(crate) async fn log_in(request: HttpRequest, services: Data<Services>, form: Form) -> ApiResult {
    let page = Page::of(&request, "");
    let to = local_path(form.get("to")).to_owned();
    match services.auth.log_in(form.get("key")).await {
        Ok(cookie) => {
            let mut response = redirect(&to, "", "");
            if let Ok(value) = cookie.to_header(is_tls(&request)).parse() {
                response.headers_mut().insert(header::SET_COOKIE, value);
            }
            Ok(response)
        }
        Err(error) if error.code() == ErrorCode::InvalidKey => {
            let problem = Some(page.t("login.wrong"));
            page_of_login(page, StatusCode::BAD_REQUEST, to, problem)
        }
        Err(error) => Err(error),
    }
}

pub(crate) async fn log_out(request: HttpRequest, services: Data<Services>, _: Form) -> ApiResult {
    if let Some(cookie) = SessionCookie::of(request.headers()) {
        services.auth.log_out(&cookie).await?;
    }
    let mut response = redirect("/ui/login", "logged_out", "");
    if let Ok(value) = SessionCookie::removal().parse() {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    Ok(response)
}

/// Remembers a language or a theme in a cookie, and leads back.
pub(crate) async fn set_preferences(request: HttpRequest) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let language = value("language").and_then(Language::from_tag).map(|language| (LANGUAGE_COOKIE, language.tag()));
    let theme = value("theme").and_then(|theme| THEMES.into_iter().find(|known| *known == theme));
    let theme = theme.map(|theme| (THEME_COOKIE, theme));
    let mut response = redirect(value("to").unwrap_or("/"), "", "");
    for (name, value) in language.into_iter().chain(theme) {
        let line = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={PREFERENCE_SECONDS}");
        if let Ok(line) = line.parse() {
            response.headers_mut().append(header::SET_COOKIE, line);
        }
    }
    Ok(response)
}

/// An error on a page of the dashboard, for a client that asks for HTML: others get JSON.
pub(crate) fn error_page(request: &HttpRequest, error: &ApiError, request_id: &str) -> Option<HttpResponse> {
    if !is_page(request.path()) || !accepts_html(request.headers()) {
        return None;
    }
    let page = Page::of(request, "");
    // With its status, and what it says to programs in its head
    let plain = error.render("", request_id);
    let status = plain.status();
    if matches!(error.code(), ErrorCode::KeyRequired | ErrorCode::InvalidKey) {
        let to = page.address().to_owned();
        return page_of_login(page, status, to, None).ok();
    }
    let (name, tries_again) = match error.code() {
        ErrorCode::NotFound => ("missing", false),
        ErrorCode::ScopeRequired | ErrorCode::NameNotAllowed => ("forbidden", false),
        ErrorCode::CrossSiteRequest => ("old_form", false),
        ErrorCode::BackendUnavailable => ("away", true),
        ErrorCode::Internal => ("internal", false),
        _ if status.is_server_error() => ("busy", false),
        _ => ("refused", false),
    };
    let (title, advice) = (page.t(&format!("error.{name}")), page.t(&format!("error.{name}.advice")));
    let template = ErrorPage { title, advice, message: error.message(), request_id, tries_again, page };
    let mut response = template.page.render_with(status, &template).ok()?;
    for name in [header::RETRY_AFTER, header::WWW_AUTHENTICATE] {
        if let Some(value) = plain.headers().get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Some(response)
}
