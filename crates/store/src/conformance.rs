//! The suite every store must pass: each sentence of the seam's documentation as a case, and one random history that two stores must agree on.

mod cases;
mod claims;
mod fixture;
mod history;
mod linear;

pub use history::agree;
pub use linear::linearizable;

use crate::SharedStore;

/// Runs every case, each on a fresh store. A failed case panics with its own name in the trace.
pub async fn check<F, Fut>(open: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = SharedStore>,
{
    cases::documents_are_kept_with_their_revisions(open().await).await;
    cases::unique_keys_hold_within_a_workspace_and_kind(open().await).await;
    cases::documents_page_without_gaps(open().await).await;
    cases::a_refused_commit_changes_nothing(open().await).await;
    cases::sequence_and_time_only_go_forward(open().await).await;
    cases::appends_are_idempotent_even_after_the_lease_is_lost(open().await).await;
    cases::clients_are_checked_against_the_revision(open().await).await;
    claims::workers_are_fenced_by_epoch(open().await).await;
    claims::the_last_append_sees_what_clients_wrote(open().await).await;
    claims::the_oldest_ready_session_is_claimed_once(open().await).await;
    claims::leases_expire_renew_and_are_handed_over(open().await).await;
    claims::claims_without_progress_are_counted(open().await).await;
    claims::the_hands_worker_claims_first(open().await).await;
    cases::events_are_listed_once_with_queued_ones_last(open().await).await;
    cases::a_page_survives_events_being_processed(open().await).await;
    cases::events_filter_by_type_thread_and_time(open().await).await;
    cases::a_deleted_session_leaves_a_tombstone(open().await).await;
    cases::answers_hold_their_key_for_a_day(open().await).await;
    cases::sessions_filter_and_page(open().await).await;
    cases::sessions_at_rest_grow_old(open().await).await;
    cases::status_changes_reach_the_primary_thread(open().await).await;
    cases::nobody_waiting_for_growth_is_missed(open().await).await;
    claims::nobody_waiting_for_work_is_missed(open().await).await;
    cases::concurrent_appends_leave_no_gap(open().await).await;
    cases::a_session_is_restored_as_it_was(open().await).await;
    cases::snapshots_are_kept_for_living_sessions(open().await).await;
}
