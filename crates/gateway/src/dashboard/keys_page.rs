//! The page of keys: make, rotate, revoke. A new secret is shown once.

use actix_web::{HttpRequest, web};
use askama::Template;
use common::time::Millis;
use model::access::{KeyId, Scope};
use store::api_keys::ListedKey;

use super::{
    page::{Page, redirect},
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    request_check::query_pairs,
    routes::{ApiResult, KeyRequest, make_key, revoke_key, rotate_key},
    services::Services,
};

/// Keys on a page.
const PAGE_SIZE: usize = 50;

#[derive(Template)]
#[template(path = "keys.html")]
struct KeysPage {
    page: Page,
    rows: Vec<KeyRow>,
    next: Option<String>,
    scopes: Vec<&'static str>,
    /// A secret that was just made.
    made: Option<String>,
}

struct KeyRow {
    id: String,
    name: String,
    scopes: Vec<&'static str>,
    limits: Vec<String>,
    last_used_at: Option<Millis>,
    expires_at: Option<Millis>,
}

impl KeyRow {
    fn new(listed: ListedKey) -> Self {
        let ListedKey { record, last_used_at } = listed;
        let access = record.access;
        let names = [access.queues.to_texts(), access.channels.to_texts()].into_iter().flatten().flatten();
        let namespace = access.namespace.as_ref().map(ToString::to_string);
        Self {
            id: record.id.to_string(),
            name: access.name,
            scopes: access.scopes.iter().map(Scope::name).collect(),
            limits: names.chain(namespace).collect(),
            last_used_at,
            expires_at: access.expires_at,
        }
    }
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    render(&request, &caller, &services, None).await
}

async fn render(request: &HttpRequest, caller: &Caller, services: &Services, made: Option<String>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let after: Option<KeyId> = pairs.iter().find(|(name, _)| name == "after").and_then(|(_, id)| id.parse().ok());
    let found = services.auth.keys().list(after.as_ref(), PAGE_SIZE, |record| caller.sees(&record.access)).await?;
    let template = KeysPage {
        page: Page::open(request, "/ui/keys").await,
        rows: found.keys.into_iter().map(KeyRow::new).collect(),
        next: found.next.map(|next| next.to_string()),
        scopes: Scope::ALL.into_iter().filter(|scope| caller.may(*scope)).map(Scope::name).collect(),
        made,
    };
    template.page.render(&template)
}

/// Names that stand in one field, with blanks or commas between.
fn names(text: &str) -> Option<Vec<String>> {
    let names: Vec<String> =
        text.split([' ', ',']).map(str::trim).filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect();
    Some(names).filter(|names| !names.is_empty())
}

pub(crate) async fn make(request: HttpRequest, caller: Caller, services: web::Data<Services>, form: Form) -> ApiResult {
    let asked = KeyRequest {
        name: form.get("name").trim().to_owned(),
        scopes: form.all("scope").map(ToOwned::to_owned).collect(),
        queues: names(form.get("queues")),
        channels: names(form.get("channels")),
        namespace: None,
        expires_at: form.given("expires_at").map(ToOwned::to_owned),
        requests_per_second: None,
        bytes_per_second: None,
    };
    let (_, key) = make_key(&caller, &services, asked).await?;
    // Shown here and nowhere else: no redirect, whose page could be loaded again
    render(&request, &caller, &services, Some(key.expose().to_owned())).await
}

pub(crate) async fn act(
    request: HttpRequest,
    caller: Caller,
    services: web::Data<Services>,
    path: web::Path<(String, String)>,
    form: Form,
) -> ApiResult {
    let (id, action) = path.into_inner();
    match action.as_str() {
        "rotate" => {
            let grace = form.number::<u64>("grace_ms")?.unwrap_or(0);
            let (_, key) = rotate_key(&caller, &services, &id, grace).await?;
            render(&request, &caller, &services, Some(key.expose().to_owned())).await
        }
        "revoke" => {
            revoke_key(&caller, &services, &id).await?;
            Ok(redirect("/ui/keys", "key_revoked", &id))
        }
        other => Err(unknown_action(other)),
    }
}
