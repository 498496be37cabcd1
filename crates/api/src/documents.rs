//! Pages of documents, newest first: the list of every resource that is one.

use crate::{
    app::App,
    cursor::{self, Place},
    query::Bounds,
    reject::Result,
};
use axum::Json;
use serde_json::{Value, json};
use vaquero_store::{DocumentQuery, Order, StoreError};
use vaquero_types::WorkspaceId;

/// A request for a page.
pub(crate) struct Page {
    /// The list's path: its cursors are no other list's.
    pub(crate) list: String,
    pub(crate) kind: &'static str,
    pub(crate) parent: Option<String>,
    pub(crate) bounds: Bounds,
    pub(crate) include_archived: bool,
    pub(crate) limit: usize,
    pub(crate) cursor: Option<String>,
}

pub(crate) async fn page(app: &App, workspace: &WorkspaceId, page: Page) -> Result<Json<Value>> {
    let place: Option<Place> =
        page.cursor.as_deref().map(|text| cursor::decode(&page.list, text)).transpose()?;
    if let Some(place) = &place {
        page.bounds.admit(place.key().0)?;
    }
    let query = DocumentQuery {
        parent: page.parent,
        include_archived: page.include_archived,
        from: page.bounds.from,
        until: page.bounds.until,
        order: Order::Descending,
        cursor: place.map(|place| place.key()),
        ..DocumentQuery::new(workspace.clone(), page.kind, page.limit)
    };
    let found = app.parts.store.documents(&query).await?;
    let last = found.documents.last().map(|document| Place {
        at: document.created_at.as_micros(),
        id: document.id.clone(),
        descending: true,
        back: false,
    });
    let next = last.filter(|_| found.more).map(|place| cursor::encode(&page.list, &place));
    let data = found
        .documents
        .iter()
        .map(|document| {
            serde_json::from_str(&document.body).map_err(|_| StoreError::Corrupt {
                what: format!("{} {}", document.kind, document.id),
            })
        })
        .collect::<std::result::Result<Vec<Value>, StoreError>>()?;
    Ok(Json(json!({ "data": data, "next_page": next })))
}
