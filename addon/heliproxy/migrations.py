"""The schema of heliproxy.db, as numbered steps. A released step is never edited; a change is a new step.

sqlite-utils keeps the list of applied steps in the table `_sqlite_migrations`. All pending steps run in one
transaction, so a process killed in the middle leaves the old schema or the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

    from sqlite_utils import Database

SET_NAME = "heliproxy"


class SchemaError(Exception):
    """The file is not ours, or was written by another version of heliproxy than this one can handle."""


M001 = (
    """
    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        created_at TEXT NOT NULL,
        provider TEXT,
        host TEXT,
        path TEXT,
        method TEXT,
        model TEXT,
        request_model TEXT,
        response_model TEXT,
        status INTEGER,
        error TEXT,
        error_type TEXT,
        stream INTEGER,
        latency_ms REAL,
        ttft_ms REAL,
        input_tokens INTEGER,
        cache_read_tokens INTEGER,
        cache_write_tokens INTEGER,
        cache_write_1h_tokens INTEGER,
        output_tokens INTEGER,
        reasoning_tokens INTEGER,
        input_audio_tokens INTEGER,
        cache_read_audio_tokens INTEGER,
        output_audio_tokens INTEGER,
        input_image_tokens INTEGER,
        output_image_tokens INTEGER,
        usage_source TEXT,
        usage_json TEXT,
        lower_bound INTEGER,
        cost_usd REAL,
        fees_usd REAL,
        cost_source TEXT,
        price_id TEXT,
        price_version TEXT,
        saved_usd REAL,
        cache TEXT,
        cache_reference_id TEXT,
        attempts INTEGER,
        attempts_json TEXT,
        fallback_index INTEGER,
        user_id TEXT,
        session_id TEXT,
        session_name TEXT,
        session_path TEXT,
        prompt_id TEXT,
        key_fingerprint TEXT,
        auth_fingerprint TEXT,
        run_id TEXT,
        client TEXT,
        service_tier TEXT,
        finish_reason TEXT,
        response_id TEXT,
        format TEXT,
        source TEXT,
        target_url TEXT,
        warning TEXT,
        parse_error TEXT,
        truncated INTEGER,
        incomplete INTEGER,
        preview TEXT,
        answer_preview TEXT,
        size_request INTEGER,
        size_response INTEGER
    )
    """,
    """
    CREATE TABLE properties (
        request_id TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT,
        PRIMARY KEY (request_id, key)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE scores (
        request_id TEXT NOT NULL,
        name TEXT NOT NULL,
        value REAL,
        type TEXT,
        PRIMARY KEY (request_id, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE feedback (
        request_id TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT,
        type TEXT,
        created_at TEXT,
        PRIMARY KEY (request_id, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE bodies (
        request_id TEXT PRIMARY KEY,
        request BLOB,
        response BLOB,
        encoding TEXT NOT NULL DEFAULT '',
        request_type TEXT,
        response_type TEXT,
        request_headers TEXT,
        response_headers TEXT
    )
    """,
    # Everything `costs` reads, in time order: a report over a million rows reads 150 MB instead of the whole table.
    # Ids and times grow together, so keeping it adds about 5 us a row.
    """
    CREATE INDEX requests_report ON requests (
        created_at, provider, model, host, status, error_type, cache, usage_source, input_tokens, output_tokens,
        cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, fees_usd, saved_usd, latency_ms, user_id,
        session_id,
        run_id, key_fingerprint
    )
    """,
    # Partial: most rows have no session or run, and then pay nothing. One on user_id would cost more than it gains.
    "CREATE INDEX requests_session ON requests (session_id) WHERE session_id IS NOT NULL",
    "CREATE INDEX requests_run ON requests (run_id) WHERE run_id IS NOT NULL",
    # Helicone's table, for its SQL. Its prompt_tokens leave out cached and audio input, its completion_tokens leave out
    # reasoning and audio output; total_tokens is everything. Cost is an integer, USD * 1e9.
    """
    CREATE VIEW request_response_rmt AS
    SELECT
        coalesce(r.response_id, r.id) AS response_id,
        strftime('%Y-%m-%dT%H:%M:%fZ', r.created_at, printf('%+.3f seconds', coalesce(r.latency_ms, 0) / 1000.0))
            AS response_created_at,
        CAST(round(r.latency_ms) AS INTEGER) AS latency,
        r.status AS status,
        max(0, coalesce(r.output_tokens, 0) - coalesce(r.reasoning_tokens, 0) - coalesce(r.output_audio_tokens, 0))
            AS completion_tokens,
        coalesce(r.output_audio_tokens, 0) AS completion_audio_tokens,
        max(0, coalesce(r.input_tokens, 0) - coalesce(r.cache_read_tokens, 0) - coalesce(r.cache_write_tokens, 0)
            - coalesce(r.input_audio_tokens, 0)) AS prompt_tokens,
        coalesce(r.cache_write_tokens, 0) AS prompt_cache_write_tokens,
        coalesce(r.cache_read_tokens, 0) AS prompt_cache_read_tokens,
        coalesce(r.input_audio_tokens, 0) AS prompt_audio_tokens,
        coalesce(r.reasoning_tokens, 0) AS reasoning_tokens,
        coalesce(r.input_tokens, 0) + coalesce(r.output_tokens, 0) AS total_tokens,
        coalesce(r.model, '') AS model,
        r.id AS request_id,
        r.created_at AS request_created_at,
        coalesce(r.user_id, '') AS user_id,
        'local' AS organization_id,
        r.key_fingerprint AS proxy_key_id,
        r.status IS -4 AS threat,
        CAST(round(coalesce(r.ttft_ms, 0)) AS INTEGER) AS time_to_first_token,
        upper(r.provider) AS provider,
        coalesce(r.target_url, 'https://' || r.host || r.path) AS target_url,
        NULL AS country_code,
        r.cache IS NOT NULL AS cache_enabled,
        r.cache IS 'HIT' AS cached,
        r.cache_reference_id AS cache_reference_id,
        r.source AS request_referrer,
        0 AS is_passthrough_billing,
        (SELECT json_group_object(p.key, p.value) FROM properties p WHERE p.request_id = r.id) AS properties,
        (SELECT json_group_object(s.name, s.value) FROM scores s WHERE s.request_id = r.id) AS scores,
        r.preview AS request_body,
        r.answer_preview AS response_body,
        CAST(round(r.cost_usd * 1000000000) AS INTEGER) AS cost,
        r.prompt_id AS prompt_id,
        NULL AS prompt_version,
        'sqlite' AS storage_location,
        coalesce(r.size_request, 0) + coalesce(r.size_response, 0) AS size_bytes,
        r.created_at AS updated_at,
        r.session_id AS session_id,
        r.session_name AS session_name,
        r.session_path AS session_path
    FROM requests r
    """,
)

M002 = (
    # What people make through the API that is no request: datasets, webhooks, saved queries, session tags, legacy jobs.
    # `value` is JSON; ids of things inside others begin with the other's id and a slash.
    """
    CREATE TABLE objects (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID
    """,
)


def stale_periods(at: str) -> str:
    """Statements that forget every sum a request made at `at`, an SQL expression, has part in."""
    hour = f"CAST(strftime('%s', substr({at}, 1, 13) || ':00') AS INTEGER) / 3600"
    return " ".join(
        f"DELETE FROM rollup_periods WHERE level = {level} AND start = {hour} / {4**level};" for level in range(6)
    )


def made_at(row: str) -> str:
    return f"(SELECT created_at FROM requests WHERE id = {row}.request_id)"


M003 = (
    # Sums of whole hours, and of blocks of 4, 16, 64, 256 and 1024 hours, for reports over many rows: see `rollups`.
    # All of it can be made again from `requests` and `properties`. `start` counts blocks of its level since 1970.
    # A period counts only while its row is here; `kinds` is NULL while it is being made.
    """
    CREATE TABLE rollup_periods (
        level INTEGER NOT NULL,
        start INTEGER NOT NULL,
        rows INTEGER,
        kinds TEXT,
        claim INTEGER,
        PRIMARY KEY (level, start)
    ) WITHOUT ROWID
    """,
    # The groups' columns are named as in `requests`, so that the same conditions select from both.
    """
    CREATE TABLE rollups (
        kind TEXT NOT NULL,
        level INTEGER NOT NULL,
        start INTEGER NOT NULL,
        number INTEGER NOT NULL,
        provider TEXT,
        model TEXT,
        host TEXT,
        status INTEGER,
        error_type TEXT,
        cache TEXT,
        user_id TEXT,
        key_fingerprint TEXT,
        client TEXT,
        prompt_id TEXT,
        run_id TEXT,
        session_id TEXT,
        property TEXT,
        requests INTEGER,
        errors INTEGER,
        hits INTEGER,
        aborted INTEGER,
        input_tokens INTEGER,
        output_tokens INTEGER,
        cache_read_tokens INTEGER,
        cache_write_tokens INTEGER,
        reasoning_tokens INTEGER,
        cost_usd REAL,
        fees_usd REAL,
        saved_usd REAL,
        estimated INTEGER,
        unpriced INTEGER,
        first_at TEXT,
        last_at TEXT,
        latencies BLOB,
        waits BLOB,
        PRIMARY KEY (kind, level, start, number)
    ) WITHOUT ROWID
    """,
    # One row: the end of the newest period. A request newer than that, as nearly all are, costs a trigger one look.
    "CREATE TABLE rollup_horizon (until TEXT NOT NULL)",
    "INSERT INTO rollup_horizon (until) VALUES ('')",
    *(
        f"CREATE TRIGGER rollups_{name} AFTER {event} "
        f"WHEN {at} < (SELECT until FROM rollup_horizon) BEGIN {stale_periods(at)} END"
        for name, event, at in (
            ("request_added", "INSERT ON requests", "NEW.created_at"),
            ("request_changed", "UPDATE ON requests", "NEW.created_at"),
            ("request_moved", "UPDATE OF created_at ON requests", "OLD.created_at"),
            ("request_removed", "DELETE ON requests", "OLD.created_at"),
            ("property_added", "INSERT ON properties", made_at("NEW")),
            ("property_changed", "UPDATE ON properties", made_at("NEW")),
            ("property_removed", "DELETE ON properties", made_at("OLD")),
        )
    ),
)

M004 = (
    # Which process is at work on a row that was opened before its call was over (see underway.py).
    "CREATE TABLE under_way (request_id TEXT PRIMARY KEY, process TEXT NOT NULL) WITHOUT ROWID",
    # Few rows are in it at any time, and all others pay nothing.
    "CREATE INDEX requests_incomplete ON requests (created_at) WHERE incomplete = 1",
)


M005 = (
    # What the page of the cache reads; rows that are no hits pay nothing.
    """
    CREATE INDEX requests_hits ON requests (created_at, cache_reference_id, saved_usd, latency_ms) WHERE cache = 'HIT'
    """,
    # Sums of before lack the kinds by property and other columns, and when users were first seen; they are made again.
    "DELETE FROM rollup_periods",
    "DELETE FROM rollups",
)


def m001_first_schema(db: Database) -> None:
    for statement in M001:
        db.execute(statement)


def m002_objects(db: Database) -> None:
    for statement in M002:
        db.execute(statement)


def m003_rollups(db: Database) -> None:
    for statement in M003:
        db.execute(statement)


def m004_under_way(db: Database) -> None:
    for statement in M004:
        db.execute(statement)


def m005_property_sums(db: Database) -> None:
    for statement in M005:
        db.execute(statement)


STEPS = (m001_first_schema, m002_objects, m003_rollups, m004_under_way, m005_property_sums)
NAMES = frozenset(step.__name__ for step in STEPS)
# Steps whose tables and columns the reports use: an archived copy without the later ones can still be read.
NEEDED_TO_READ = frozenset({m001_first_schema.__name__})


def applied_steps(conn: sqlite3.Connection) -> frozenset[str]:
    """Names of the steps this file has had; empty for a new file.

    Raises SchemaError for a database that has tables but none of ours; sqlite3.Error when it cannot be read.
    """
    tables = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "_sqlite_migrations" in tables:
        rows = conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (SET_NAME,)).fetchall()
        if rows:
            return frozenset(name for (name,) in rows)
    if tables:
        raise SchemaError("this SQLite file is not a heliproxy database")
    return frozenset()


def check_not_newer(applied: frozenset[str]) -> None:
    """Raise SchemaError when the file has had steps this version does not know."""
    unknown = sorted(applied - NAMES)
    if unknown:
        raise SchemaError(
            f"the database was written by a newer heliproxy (it has {', '.join(unknown)}); update heliproxy to read it"
        )


def check_readable(conn: sqlite3.Connection) -> None:
    """Raise SchemaError unless the reports can read this file as it is. For readers, which never migrate."""
    applied = applied_steps(conn)
    check_not_newer(applied)
    if not applied:
        raise SchemaError(
            "the database has no tables; if it is a copy of one in use, copy the file ending in -wal beside it as well"
        )
    if not applied >= NEEDED_TO_READ:
        raise SchemaError("the database has an older schema; run `heliproxy serve` once to bring it up to date")


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the file up to this version. The connection is in autocommit mode (isolation_level None).

    Raises SchemaError, file unchanged, when it is newer or not ours; sqlite3.Error when it cannot be written.
    """
    applied = applied_steps(conn)
    check_not_newer(applied)
    if applied == NAMES:
        return
    # A heavy import, needed on the first run and after an update only.
    from sqlite_utils import Database, Migrations

    migrations = Migrations(SET_NAME)
    for step in STEPS:
        migrations()(step)
    # The write lock is taken before looking again: another process may be migrating the same file.
    conn.execute("BEGIN IMMEDIATE")
    try:
        check_not_newer(applied_steps(conn))
        migrations.apply(Database(conn, recursive_triggers=False, execute_plugins=False))
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
