-- +goose Up

-- The authority's configuration: one row, whose id is always 'authority'.
CREATE TABLE settings (
  id TEXT NOT NULL PRIMARY KEY,
  version BIGINT NOT NULL,
  changed BIGINT NOT NULL,
  changed_by TEXT NOT NULL,
  document TEXT NOT NULL
);
