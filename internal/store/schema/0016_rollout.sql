-- +goose Up
-- readers from: 12

-- Staged changes over the hosts of a pool. spec and plan are JSON: what was asked for, and what is made and done for it by
-- now. stage, wave and moved_at say how far it is; backwards is 1 while it is undone. id is number as text.
CREATE TABLE rollout (
    id TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE,
    pool TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    backwards BIGINT NOT NULL,
    stage TEXT NOT NULL,
    wave BIGINT NOT NULL,
    moved_at BIGINT NOT NULL,
    spec TEXT NOT NULL,
    plan TEXT NOT NULL,
    message TEXT NOT NULL,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX rollout_running ON rollout (pool) WHERE ended_at = 0;

CREATE INDEX rollout_by_end ON rollout (ended_at) WHERE ended_at > 0;

-- The hosts of a rollout, each in a wave. moved_at is when the host was told of the present stage, done_at when it was seen to
-- have fulfilled it; 0 before. failing is 1 where one of its placements failed when it was told. because is why it is not waited
-- for, empty where it is. before_json is what undoing puts back.
CREATE TABLE rollout_host (
    rollout TEXT NOT NULL,
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    wave BIGINT NOT NULL,
    moved_at BIGINT NOT NULL,
    done_at BIGINT NOT NULL,
    failing BIGINT NOT NULL,
    message TEXT NOT NULL,
    because TEXT NOT NULL,
    before_json TEXT NOT NULL,
    PRIMARY KEY (rollout, host)
);

CREATE INDEX rollout_host_by_wave ON rollout_host (rollout, wave, done_at);
