BEGIN TRANSACTION;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
INSERT INTO "_sqlite_migrations" VALUES(1,'heliproxy','m001_first_schema','2026-09-01 00:00:00');
INSERT INTO "_sqlite_migrations" VALUES(2,'heliproxy','m002_objects','2026-09-01 00:00:00');
INSERT INTO "_sqlite_migrations" VALUES(3,'heliproxy','m003_rollups','2026-09-01 00:00:00');
INSERT INTO "_sqlite_migrations" VALUES(4,'heliproxy','m004_under_way','2026-09-01 00:00:00');
INSERT INTO "_sqlite_migrations" VALUES(5,'heliproxy','m005_property_sums','2026-09-01 00:00:00');
CREATE TABLE bodies (
        request_id TEXT PRIMARY KEY,
        request BLOB,
        response BLOB,
        encoding TEXT NOT NULL DEFAULT '',
        request_type TEXT,
        response_type TEXT,
        request_headers TEXT,
        response_headers TEXT
    );
INSERT INTO "bodies" VALUES('id-00',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-01',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-02',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-03',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-04',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-05',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-06',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-07',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-08',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-09',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-10',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
INSERT INTO "bodies" VALUES('id-11',X'7B2261223A20317D',X'00FF','','application/json',NULL,NULL,NULL);
CREATE TABLE feedback (
        request_id TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT,
        type TEXT,
        created_at TEXT,
        PRIMARY KEY (request_id, name)
    ) WITHOUT ROWID
    ;
INSERT INTO "feedback" VALUES('id-01','rating','true','boolean','2026-02-11T01:30:00.000Z');
CREATE TABLE objects (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID
    ;
INSERT INTO "objects" VALUES('webhook','w1','2026-02-11T01:30:00.000Z','2026-02-11T01:30:00.000Z','{"url": "https://hooks.example.com"}');
CREATE TABLE properties (
        request_id TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT,
        PRIMARY KEY (request_id, key)
    ) WITHOUT ROWID
    ;
INSERT INTO "properties" VALUES('id-00','env','dev');
INSERT INTO "properties" VALUES('id-01','env','prod');
INSERT INTO "properties" VALUES('id-02','env','dev');
INSERT INTO "properties" VALUES('id-03','env','prod');
INSERT INTO "properties" VALUES('id-04','env','dev');
INSERT INTO "properties" VALUES('id-05','env','prod');
INSERT INTO "properties" VALUES('id-06','env','dev');
INSERT INTO "properties" VALUES('id-07','env','prod');
INSERT INTO "properties" VALUES('id-08','env','dev');
INSERT INTO "properties" VALUES('id-09','env','prod');
INSERT INTO "properties" VALUES('id-10','env','dev');
INSERT INTO "properties" VALUES('id-11','env','prod');
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
    );
INSERT INTO "requests" VALUES('id-00','2026-01-10T00:30:00.000Z','openai','api.example.com','/v1/x','POST','gpt-4o-mini',NULL,NULL,200,NULL,NULL,NULL,100.0,NULL,0,5,NULL,NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,0.0,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-0','s-0',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-01','2026-02-11T01:30:00.001Z','anthropic','api.example.com','/v1/x','POST','claude-opus-4-8',NULL,NULL,200,NULL,NULL,NULL,101.0,NULL,100,NULL,NULL,NULL,10,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,0.25,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-1','s-1',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-02','2026-03-12T02:30:00.002Z','openai','api.example.com','/v1/x','POST','gpt-4o-mini',NULL,NULL,200,NULL,NULL,NULL,102.0,NULL,200,NULL,NULL,NULL,20,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,0.5,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-2','s-0',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-03','2026-04-13T03:30:00.003Z','anthropic','api.example.com','/v1/x','POST','claude-opus-4-8',NULL,NULL,429,NULL,'rate_limit_error',NULL,103.0,NULL,300,5,NULL,NULL,30,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,NULL,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-0','s-1',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-04','2026-05-14T04:30:00.004Z','openai','api.example.com','/v1/x','POST','gpt-4o-mini',NULL,NULL,200,NULL,NULL,NULL,104.0,NULL,400,NULL,NULL,NULL,40,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,1.0,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-1','s-0',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-05','2026-06-15T05:30:00.005Z','anthropic','api.example.com','/v1/x','POST','claude-opus-4-8',NULL,NULL,200,NULL,NULL,NULL,105.0,NULL,500,NULL,NULL,NULL,50,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,1.25,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-2','s-1',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-06','2026-07-16T06:30:00.006Z','openai','api.example.com','/v1/x','POST','gpt-4o-mini',NULL,NULL,200,NULL,NULL,NULL,106.0,NULL,600,5,NULL,NULL,60,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,1.5,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-0','s-0',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-07','2026-08-17T07:30:00.007Z','anthropic','api.example.com','/v1/x','POST','claude-opus-4-8',NULL,NULL,429,NULL,'rate_limit_error',NULL,107.0,NULL,700,NULL,NULL,NULL,70,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,NULL,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-1','s-1',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-08','2026-01-18T08:30:00.008Z','openai','api.example.com','/v1/x','POST','gpt-4o-mini',NULL,NULL,200,NULL,NULL,NULL,108.0,NULL,800,NULL,NULL,NULL,80,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,2.0,NULL,'genai-prices',NULL,NULL,NULL,'HIT',NULL,NULL,NULL,NULL,'user-2','s-0',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-09','2026-02-19T09:30:00.009Z','anthropic','api.example.com','/v1/x','POST','claude-opus-4-8',NULL,NULL,200,NULL,NULL,NULL,109.0,NULL,900,5,NULL,NULL,90,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,2.25,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-0','s-1',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-10','2026-03-20T00:30:00.010Z','openai','api.example.com','/v1/x','POST','gpt-4o-mini',NULL,NULL,200,NULL,NULL,NULL,110.0,NULL,1000,NULL,NULL,NULL,100,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,2.5,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-1','s-0',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-11','2026-04-21T01:30:00.011Z','anthropic','api.example.com','/v1/x','POST','claude-opus-4-8',NULL,NULL,429,NULL,'rate_limit_error',NULL,111.0,NULL,1100,NULL,NULL,NULL,110,NULL,NULL,NULL,NULL,NULL,NULL,'provider',NULL,NULL,NULL,NULL,'genai-prices',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'user-2','s-1',NULL,'/a/b',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'proxy',NULL,NULL,NULL,NULL,0,'hello ''quoted'' ünïcode',NULL,NULL,NULL);
INSERT INTO "requests" VALUES('id-open','2026-09-01T00:00:00.000Z','openai',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,NULL,NULL,NULL,NULL);
CREATE TABLE rollup_horizon (until TEXT NOT NULL);
INSERT INTO "rollup_horizon" VALUES('');
CREATE TABLE rollup_periods (
        level INTEGER NOT NULL,
        start INTEGER NOT NULL,
        rows INTEGER,
        kinds TEXT,
        claim INTEGER,
        PRIMARY KEY (level, start)
    ) WITHOUT ROWID
    ;
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
    ;
CREATE TABLE scores (
        request_id TEXT NOT NULL,
        name TEXT NOT NULL,
        value REAL,
        type TEXT,
        PRIMARY KEY (request_id, name)
    ) WITHOUT ROWID
    ;
INSERT INTO "scores" VALUES('id-01','quality',0.5,'number');
CREATE TABLE under_way (request_id TEXT PRIMARY KEY, process TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "under_way" VALUES('id-open','1-00000000');
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE INDEX requests_report ON requests (
        created_at, provider, model, host, status, error_type, cache, usage_source, input_tokens, output_tokens,
        cache_read_tokens, cache_write_tokens, reasoning_tokens, cost_usd, fees_usd, saved_usd, latency_ms, user_id,
        session_id,
        run_id, key_fingerprint
    )
    ;
CREATE INDEX requests_session ON requests (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX requests_run ON requests (run_id) WHERE run_id IS NOT NULL;
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
    FROM requests r;
CREATE TRIGGER rollups_request_added AFTER INSERT ON requests WHEN NEW.created_at < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE TRIGGER rollups_request_changed AFTER UPDATE ON requests WHEN NEW.created_at < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr(NEW.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE TRIGGER rollups_request_moved AFTER UPDATE OF created_at ON requests WHEN OLD.created_at < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE TRIGGER rollups_request_removed AFTER DELETE ON requests WHEN OLD.created_at < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr(OLD.created_at, 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE TRIGGER rollups_property_added AFTER INSERT ON properties WHEN (SELECT created_at FROM requests WHERE id = NEW.request_id) < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE TRIGGER rollups_property_changed AFTER UPDATE ON properties WHEN (SELECT created_at FROM requests WHERE id = NEW.request_id) < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = NEW.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE TRIGGER rollups_property_removed AFTER DELETE ON properties WHEN (SELECT created_at FROM requests WHERE id = OLD.request_id) < (SELECT until FROM rollup_horizon) BEGIN DELETE FROM rollup_periods WHERE level = 0 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = OLD.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 1; DELETE FROM rollup_periods WHERE level = 1 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = OLD.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 4; DELETE FROM rollup_periods WHERE level = 2 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = OLD.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 16; DELETE FROM rollup_periods WHERE level = 3 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = OLD.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 64; DELETE FROM rollup_periods WHERE level = 4 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = OLD.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 256; DELETE FROM rollup_periods WHERE level = 5 AND start = CAST(strftime('%s', substr((SELECT created_at FROM requests WHERE id = OLD.request_id), 1, 13) || ':00') AS INTEGER) / 3600 / 1024; END;
CREATE INDEX requests_hits ON requests (created_at, cache_reference_id, saved_usd, latency_ms) WHERE cache = 'HIT';
CREATE INDEX requests_incomplete ON requests (created_at) WHERE incomplete = 1;
COMMIT;
