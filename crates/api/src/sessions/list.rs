//! `GET /v1/sessions`

use crate::{
    app::App,
    auth::Caller,
    cursor::{self, Place},
    query::Query,
    reject::Result,
    sessions,
};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use vaquero_store::{Order, SessionQuery, SessionRow, StoreError};
use vaquero_types::{AgentId, ApiError, SessionId, session::Status};

const LIST: &str = "/v1/sessions";

pub(crate) async fn handler(
    State(app): State<App>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>> {
    let agent = query.one("agent_id")?.map(AgentId::from_wire);
    let agent_version = query.number("agent_version")?;
    if agent_version.is_some() && agent.is_none() {
        return Err(
            ApiError::invalid("agent_version: may only be given together with agent_id").into()
        );
    }
    let of_nobody = query.one("deployment_id")?.is_some() | query.one("memory_store_id")?.is_some();
    let statuses = statuses(&query.many("statuses"))?;
    let bounds = query.bounds("created_at", &["gt", "gte", "lt", "lte"])?;
    let include_archived = query.flag("include_archived")?;
    let order = query.order(Order::Descending)?;
    let limit = query.limit(20, 100)?;
    let page = query.one("page")?;
    query.finish()?;
    let place: Option<Place> =
        page.as_deref().map(|text| cursor::decode(LIST, text)).transpose()?;
    if let Some(place) = &place {
        cursor::same_order(place.descending, order)?;
        bounds.admit(place.key().0)?;
    }
    if of_nobody {
        return Ok(Json(json!({ "data": [], "next_page": null, "prev_page": null })));
    }
    let back = place.as_ref().is_some_and(|place| place.back);
    let reversed = if order == Order::Ascending { Order::Descending } else { Order::Ascending };
    let found = app
        .parts
        .store
        .sessions(&SessionQuery {
            workspace: caller.workspace,
            agent,
            agent_version,
            statuses,
            after: bounds.after,
            from: bounds.from,
            before: bounds.before,
            until: bounds.until,
            include_archived,
            order: if back { reversed } else { order },
            cursor: place
                .as_ref()
                .map(|place| (place.key().0, SessionId::from_wire(place.id.clone()))),
            limit,
        })
        .await?;
    let mut rows = found.sessions;
    if back {
        rows.reverse();
    }
    let mark = |row: Option<&SessionRow>, back: bool| {
        row.map(|row| {
            let place = Place {
                at: row.created_at.as_micros(),
                id: row.id.as_str().to_owned(),
                descending: order == Order::Descending,
                back,
            };
            cursor::encode(LIST, &place)
        })
    };
    let next = mark(rows.last(), false).filter(|_| found.more || back);
    let previous =
        mark(rows.first(), true).filter(|_| if back { found.more } else { place.is_some() });
    let now = app.now();
    let data = rows
        .iter()
        .map(|row| {
            let body = serde_json::from_str(&row.body)
                .map_err(|_| StoreError::Corrupt { what: format!("session {}", row.id) })?;
            Ok(sessions::show(row, &body, now))
        })
        .collect::<Result<Vec<Value>>>()?;
    Ok(Json(json!({ "data": data, "next_page": next, "prev_page": previous })))
}

pub(crate) fn statuses(words: &[String]) -> Result<Vec<Status>> {
    let parse = |word: &String| {
        Status::parse(word).ok_or_else(|| {
            ApiError::invalid(format!(
                "statuses: unknown value `{word}`; expected one of `idle`, `running`, `rescheduling`, `terminated`"
            ))
            .into()
        })
    };
    words.iter().map(parse).collect()
}
