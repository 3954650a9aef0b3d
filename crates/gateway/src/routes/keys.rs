//! API keys in Redis: make, list, change, rotate, revoke. The answer that makes a secret is the only one that shows it.
//!
//! A key makes and changes only keys that may do no more than itself, so that no key gains what it did not have.

use actix_web::{
    HttpResponse,
    http::{StatusCode, header},
    web,
};
use common::{
    name::quoted,
    time::{self, Millis},
};
use model::access::{ApiKey, ApiKeyRecord, KeyId, KeyText};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use store::api_keys::{ListedKey, MAX_API_KEYS, TooManyApiKeys, key_json};

use super::{ApiResult, json_response, list_answer::list_answer, parse_bounded};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// The default number of keys on a page, and the most.
const DEFAULT_PAGE_SIZE: usize = 50;
const MAX_PAGE_SIZE: usize = 100;
/// The longest time that the secret before a rotation may be used.
const MAX_GRACE_MS: u64 = 30 * 86_400_000;

/// What a new key is to be.
#[derive(Deserialize)]
pub(crate) struct KeyRequest {
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) queues: Option<Vec<String>>,
    pub(crate) channels: Option<Vec<String>>,
    pub(crate) namespace: Option<String>,
    pub(crate) expires_at: Option<String>,
    pub(crate) requests_per_second: Option<u32>,
    pub(crate) bytes_per_second: Option<u64>,
}

#[derive(Deserialize)]
struct UpdateKeyRequest {
    name: Option<String>,
    #[serde(default, deserialize_with = "null_as_absent")]
    #[expect(clippy::option_option, reason = "absent: as it was; null: never")]
    expires_at: Option<Option<String>>,
}

#[derive(Deserialize, Default)]
struct RotateKeyRequest {
    grace_ms: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct ListKeysQuery {
    after: Option<String>,
    limit: Option<String>,
}

#[expect(clippy::option_option, reason = "absent: as it was; null: never")]
fn null_as_absent<'de, D: Deserializer<'de>>(given: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(given).map(Some)
}

/// Makes a key. Only this answer shows it.
pub(super) async fn create(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let (record, key) = make_key(&caller, &services, body.parse()?).await?;
    Ok(secret_response(StatusCode::CREATED, record, &key))
}

/// Makes a key that may do no more than the caller.
pub(crate) async fn make_key(
    caller: &Caller,
    services: &Services,
    request: KeyRequest,
) -> Result<(ApiKeyRecord, ApiKey), ApiError> {
    let (key, now) = (ApiKey::generate(), store::local_now());
    let namespace = request.namespace.or_else(|| caller.namespace.as_ref().map(ToString::to_string));
    let text = KeyText {
        queues: request.queues,
        channels: request.channels,
        namespace,
        expires_at: parse_end(request.expires_at.as_deref(), now)?.map(time::format),
        requests_per_second: request.requests_per_second,
        bytes_per_second: request.bytes_per_second,
        ..KeyText::new(&key, request.name, request.scopes, now)
    };
    let record = text.parse().map_err(ApiError::invalid)?;
    check_covered(caller, &record)?;
    services
        .auth
        .keys()
        .create(&record)
        .await?
        .map_err(|TooManyApiKeys| ApiError::new(ErrorCode::TooManyKeys, format!("there are {MAX_API_KEYS} keys")))?;
    Ok((record, key))
}

/// Keys by id, without their secrets.
pub(super) async fn list(caller: Caller, services: web::Data<Services>, query: web::Query<ListKeysQuery>) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let after: Option<KeyId> = query.after.as_deref().map(str::parse).transpose()?;
    let page = services.auth.keys().list(after.as_ref(), limit, |record| caller.sees(&record.access)).await?;
    let keys: Vec<String> = page.keys.iter().map(|key| key_json(key).to_string()).collect();
    let next = page.next.map(|next| next.to_string());
    Ok(json_response(list_answer(&keys, next.as_deref())))
}

/// One key, without its secret.
pub(super) async fn show(caller: Caller, services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let found = services.auth.keys().get_listed(&parse_key_id(&id)?).await?;
    let found = found.filter(|listed| caller.sees(&listed.record.access)).ok_or_else(|| key_not_found(&id))?;
    Ok(HttpResponse::Ok().json(json!({ "api_key": key_json(&found) })))
}

/// Changes the name of a key, or when it expires.
pub(super) async fn update(
    caller: Caller,
    services: web::Data<Services>,
    id: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let request: UpdateKeyRequest = body.parse()?;
    let before = known_key(&caller, &services, &id).await?;
    let expires_at = match request.expires_at {
        Some(given) => Some(parse_end(given.as_deref(), store::local_now())?),
        None => None,
    };
    let change = |record: &mut ApiKeyRecord| {
        if let Some(name) = &request.name {
            record.access.name.clone_from(name);
        }
        if let Some(end) = expires_at {
            record.access.expires_at = end;
        }
    };
    let mut after = before;
    change(&mut after);
    // Checked as a whole, as if it were read back
    KeyText::of(&after).parse().map_err(ApiError::invalid)?;
    let changed = services.auth.keys().update(&after.id, change).await?.ok_or_else(|| key_not_found(&id))?;
    services.auth.forget_key(&changed.id);
    Ok(HttpResponse::Ok().json(json!({ "api_key": key_json(&ListedKey { record: changed, last_used_at: None }) })))
}

/// Gives a key another secret. Only this answer shows it.
pub(super) async fn rotate(
    caller: Caller,
    services: web::Data<Services>,
    id: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let request: RotateKeyRequest = if body.bytes().is_empty() { RotateKeyRequest::default() } else { body.parse()? };
    let (record, key) = rotate_key(&caller, &services, &id, request.grace_ms.unwrap_or(0)).await?;
    Ok(secret_response(StatusCode::OK, record, &key))
}

/// Gives a key another secret; the one before works for `grace` milliseconds.
pub(crate) async fn rotate_key(
    caller: &Caller,
    services: &Services,
    id: &str,
    grace: u64,
) -> Result<(ApiKeyRecord, ApiKey), ApiError> {
    let grace = Some(grace).filter(|grace| *grace <= MAX_GRACE_MS).and_then(|grace| Millis::try_from(grace).ok());
    let grace = grace.ok_or_else(|| {
        ApiError::invalid(format!("grace_ms must be an integer of milliseconds from 0 to {MAX_GRACE_MS}"))
    })?;
    let record = known_key(caller, services, id).await?;
    let (key, now) = (ApiKey::generate_for(record.id.clone()), store::local_now());
    let change = |record: &mut ApiKeyRecord| {
        // A repeated save must not take the new secret for the one before
        if record.hash != key.hash() {
            let before = std::mem::replace(&mut record.hash, key.hash());
            record.previous = Some((before, now + grace)).filter(|_| grace > 0);
        }
    };
    let changed = services.auth.keys().update(&record.id, change).await?.ok_or_else(|| key_not_found(id))?;
    services.auth.forget_key(&changed.id);
    Ok((changed, key))
}

/// Revokes a key. Every gateway hears it at once.
pub(super) async fn revoke(caller: Caller, services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let id = revoke_key(&caller, &services, &id).await?;
    Ok(HttpResponse::Ok().json(json!({ "revoked": true, "id": id.as_str() })))
}

pub(crate) async fn revoke_key(caller: &Caller, services: &Services, id: &str) -> Result<KeyId, ApiError> {
    let record = known_key(caller, services, id).await?;
    let is_revoked = services.auth.keys().revoke(&record.id).await?;
    services.auth.forget_key(&record.id);
    if is_revoked { Ok(record.id) } else { Err(key_not_found(id)) }
}

/// A key that the caller may change.
async fn known_key(caller: &Caller, services: &Services, id: &str) -> Result<ApiKeyRecord, ApiError> {
    let found = services.auth.keys().get(&parse_key_id(id)?).await?;
    let record = found.filter(|record| caller.sees(&record.access)).ok_or_else(|| key_not_found(id))?;
    check_covered(caller, &record)?;
    Ok(record)
}

fn check_covered(caller: &Caller, record: &ApiKeyRecord) -> Result<(), ApiError> {
    if caller.is_own_token() {
        // It would outlive the token, and what made that
        return Err(ApiError::new(ErrorCode::ScopeRequired, "a token that a gateway made makes and changes no keys"));
    }
    if caller.covers(&record.access) {
        return Ok(());
    }
    let message = "a key makes and changes only keys that may do no more than itself: \
                   its scopes, its queues and channels, and its namespace";
    Err(ApiError::new(ErrorCode::ScopeRequired, message))
}

fn secret_response(status: StatusCode, record: ApiKeyRecord, key: &ApiKey) -> HttpResponse {
    let shown = key_json(&ListedKey { record, last_used_at: None });
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    if status == StatusCode::CREATED {
        response.insert_header((header::LOCATION, format!("/v1/admin/keys/{}", key.id())));
    }
    response.json(json!({ "api_key": shown, "key": key.expose() }))
}

/// When a key expires: an absolute time, or one from now on.
fn parse_end(given: Option<&str>, now: Millis) -> Result<Option<Millis>, ApiError> {
    let parsed = given.map(|text| time::parse_time(text, now)).transpose();
    let end = parsed.map_err(|error| ApiError::invalid(format!("expires_at {error}")))?.map(|time| time.at);
    if end.is_some_and(|end| end <= now) {
        return Err(ApiError::invalid("expires_at must be in the future; DELETE revokes a key now"));
    }
    Ok(end)
}

/// An id in a path. An invalid id is not found: no key can have it.
fn parse_key_id(text: &str) -> Result<KeyId, ApiError> {
    text.parse().map_err(|_| key_not_found(text))
}

fn key_not_found(id: &str) -> ApiError {
    ApiError::not_found(format_args!("key {}", quoted(id)))
}
