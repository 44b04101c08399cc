-- What the administrator of PostgreSQL installs once, in the authority's database and as a superuser:
--
--     psql -d DATABASE -f logins.sql
--
-- By these functions, and by no right of their own, nodes give each other logins and end them: no node's login may create or change
-- roles. They know logins named chancery_NODE only, make none that is more than a node's, and are for the owner of the database,
-- which owns the tables. To install them again is to bring them up to date.
BEGIN;

CREATE SCHEMA IF NOT EXISTS chancery_logins;
REVOKE ALL ON SCHEMA chancery_logins FROM PUBLIC;

-- gate is what the functions lock, so that two do not change the same login at once: these functions alone may lock it. No advisory lock
-- would do, which every login may hold for as long as it likes. Whoever may call them can hold it, in a transaction that he leaves open;
-- therefore nothing waits for long, and a login is shut and its sessions are ended before it is asked for.
CREATE TABLE IF NOT EXISTS chancery_logins.gate ();
REVOKE ALL ON chancery_logins.gate FROM PUBLIC;

-- owner is the role that owns the database. It is refused where a node's login would be too much by it, or where the name is not that
-- of a node's login, or of one that somebody else has made for something else.
CREATE OR REPLACE FUNCTION chancery_logins.owner(login text) RETURNS name LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o record;
  r record;
BEGIN
  SELECT a.oid, a.rolname, a.rolsuper, a.rolcreaterole INTO STRICT o
    FROM pg_roles a JOIN pg_database d ON d.datdba = a.oid WHERE d.datname = current_database();
  IF o.rolsuper OR o.rolcreaterole OR pg_has_role(o.oid, 'pg_execute_server_program', 'MEMBER')
      OR pg_has_role(o.oid, 'pg_write_server_files', 'MEMBER') OR pg_has_role(o.oid, 'pg_read_server_files', 'MEMBER') THEN
    RAISE EXCEPTION 'the owner of the database, %, is more than an owner (SUPERUSER, CREATEROLE, or files and programs of the server), and each node would be',
      o.rolname USING HINT = 'ALTER ROLE … NOSUPERUSER NOCREATEROLE, or ALTER DATABASE … OWNER TO a role that is neither';
  END IF;
  IF login !~ '^chancery_[a-z0-9-]{1,54}$' OR login = o.rolname OR login = o.rolname || '_reader' THEN
    RAISE EXCEPTION '% is not the name of a node''s login: chancery_ and 1 to 54 of a-z, 0-9 and hyphens would pass', quote_literal(login);
  END IF;
  SELECT a.oid, a.rolsuper, a.rolreplication, a.rolbypassrls INTO r FROM pg_roles a WHERE a.rolname = login;
  IF FOUND AND (r.rolsuper OR r.rolreplication OR r.rolbypassrls) THEN
    RAISE EXCEPTION 'the role % is more than a node''s login', login;
  END IF;
  IF FOUND AND shobj_description(r.oid, 'pg_authid') IS DISTINCT FROM 'chancery: a node of ' || current_database()
      AND NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.roleid = o.oid) THEN
    RAISE EXCEPTION 'the role % is there already, and is no login of a node of this database', login;
  END IF;
  RETURN o.rolname;
END $$;

-- strip takes every membership from a login, whoever gave it.
CREATE OR REPLACE FUNCTION chancery_logins.strip(login text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  m record;
BEGIN
  FOR m IN SELECT g.rolname AS given, b.rolname AS giver FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.member
      JOIN pg_roles g ON g.oid = a.roleid LEFT JOIN pg_roles b ON b.oid = a.grantor WHERE r.rolname = login LOOP
    -- From PostgreSQL 16 on, a REVOKE takes back what one grantor granted, and no more.
    EXECUTE format('REVOKE %I FROM %I', m.given, login) || CASE WHEN current_setting('server_version_num')::int >= 160000
      THEN format(' GRANTED BY %I CASCADE', m.giver) ELSE '' END;
  END LOOP;
  IF EXISTS (SELECT FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.member WHERE r.rolname = login) THEN
    RAISE EXCEPTION 'the login % keeps its memberships, although they were revoked', login;
  END IF;
END $$;

-- end_sessions ends what a login has open, whatever it does, but for what waits for a standby: ended, its commit would be seen and could be
-- lost. It says how many are left after two seconds.
CREATE OR REPLACE FUNCTION chancery_logins.end_sessions(login text) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  n bigint;
BEGIN
  FOR look IN 1..100 LOOP
    PERFORM pg_stat_clear_snapshot();
    SELECT count(*) INTO n FROM pg_stat_activity WHERE usename = login AND pid <> pg_backend_pid();
    EXIT WHEN n = 0;
    PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE usename = login AND pid <> pg_backend_pid() AND wait_event IS DISTINCT FROM 'SyncRep';
    PERFORM pg_sleep(0.02);
  END LOOP;
  RETURN n;
END $$;

-- add makes a node's login, or makes it what it must be. It may do what the owner may, and a node acts as the owner from the
-- beginning of each connection, so that what it makes is the owner's; a limited one, of a node that issues nothing, may do what OWNER_reader may, and no
-- more. It has no password: it comes with a certificate.
CREATE OR REPLACE FUNCTION chancery_logins.add(login text, limited boolean) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  owner name := chancery_logins.owner(login);
  reader text := owner || '_reader';
  r record;
BEGIN
  LOCK TABLE chancery_logins.gate IN EXCLUSIVE MODE; -- two nodes may give the same login at once
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
    EXECUTE format('CREATE ROLE %I', login);
  END IF;
  EXECUTE format('COMMENT ON ROLE %I IS %L', login, 'chancery: a node of ' || current_database());
  EXECUTE format('ALTER ROLE %I LOGIN INHERIT NOCREATEROLE NOCREATEDB PASSWORD NULL', login);
  PERFORM chancery_logins.strip(login);
  IF limited THEN
    SELECT rolsuper OR rolcreaterole OR rolcanlogin OR EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
      WHERE m.member = a.oid AND g.rolname <> 'pg_read_all_stats') AS more INTO r FROM pg_roles a WHERE a.rolname = reader;
    IF NOT FOUND THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', reader);
    ELSIF r.more THEN
      RAISE EXCEPTION 'the role % is more than what readers share', reader;
    END IF;
    IF pg_has_role(owner, 'pg_read_all_stats', 'MEMBER') THEN -- how the standbys stand
      EXECUTE format('GRANT pg_read_all_stats TO %I', reader);
    END IF;
    EXECUTE format('GRANT %I TO %I', reader, login);
  ELSE
    EXECUTE format('GRANT %I TO %I', owner, login);
  END IF;
END $$;

-- drop ends a node's login: first it has no rights and lets nobody in, then, called again, nobody who came in before is left, and it is
-- removed. It says whether it is gone. Its sessions are ended before anything is locked, since they may hold any of it, and once more
-- while one that came in since does.
CREATE OR REPLACE FUNCTION chancery_logins.drop(login text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
DECLARE
  owner name := chancery_logins.owner(login);
  enters boolean;
BEGIN
  SELECT rolcanlogin INTO enters FROM pg_roles WHERE rolname = login;
  IF NOT FOUND THEN
    RETURN true;
  END IF;
  FOR try IN 1..3 LOOP
    PERFORM chancery_logins.end_sessions(login);
    BEGIN
      EXECUTE format('ALTER ROLE %I NOLOGIN NOCREATEROLE', login);
      EXECUTE format('COMMENT ON ROLE %I IS %L', login, 'chancery: a node of ' || current_database());
      PERFORM chancery_logins.strip(login);
      EXIT;
    EXCEPTION WHEN lock_not_available OR internal_error THEN -- "tuple concurrently updated": whoever held the role has changed it
      IF try = 3 THEN
        RAISE;
      END IF;
    END;
  END LOOP;
  IF chancery_logins.end_sessions(login) > 0 OR enters THEN
    RETURN false;
  END IF;
  LOCK TABLE chancery_logins.gate IN EXCLUSIVE MODE;
  EXECUTE format('REASSIGN OWNED BY %I TO %I', login, owner);
  EXECUTE format('DROP OWNED BY %I', login);
  EXECUTE format('DROP ROLE %I', login);
  RETURN true;
END $$;

-- end_standing ends the sessions for which a session waits, at first or second hand, and that say nothing in the middle of a transaction:
-- the process of a node that was removed stands still with a row that the removal needs. It ends those of this database's nodes and of its
-- owner alone, which the owner could end as well, login by login; never one that works, or waits for its COMMIT. It says how many it ended.
CREATE OR REPLACE FUNCTION chancery_logins.end_standing(waiting integer) RETURNS bigint LANGUAGE sql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  WITH RECURSIVE before(pid) AS (
    SELECT unnest(pg_blocking_pids(waiting)) UNION SELECT unnest(pg_blocking_pids(before.pid)) FROM before
  )
  SELECT count(pg_terminate_backend(a.pid)) FROM before JOIN pg_stat_activity a ON a.pid = before.pid JOIN pg_roles r ON r.oid = a.usesysid
    JOIN pg_database d ON d.oid = a.datid
    WHERE d.datname = current_database() AND a.state = 'idle in transaction' AND a.state_change < clock_timestamp() - interval '500 milliseconds'
      AND NOT r.rolsuper AND (pg_has_role(r.oid, d.datdba, 'MEMBER')
        OR shobj_description(r.oid, 'pg_authid') = 'chancery: a node of ' || current_database());
$$;

-- owner_enters says whether the owner of the database is let in over the network by what pg_hba.conf and pg_ident.conf say now: a node that
-- had no login of its own was. It knows maps of certificates; whatever else lets somebody in may let him in as the owner, and so may what
-- PostgreSQL before 15, which shows no pg_ident.conf, does not tell.
CREATE OR REPLACE FUNCTION chancery_logins.owner_enters() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o record;
BEGIN
  SELECT a.rolname::text, a.rolcanlogin INTO STRICT o FROM pg_roles a JOIN pg_database d ON d.datdba = a.oid WHERE d.datname = current_database();
  RETURN o.rolcanlogin AND EXISTS (
    SELECT FROM pg_hba_file_rules h CROSS JOIN LATERAL unnest(h.user_name) u
      CROSS JOIN LATERAL (SELECT (SELECT substr(x, 5) FROM unnest(h.options) x WHERE starts_with(x, 'map=')) AS name) m
      WHERE h.error IS NULL AND h.type <> 'local' AND h.auth_method <> 'reject' AND h.database <> '{replication}'
        AND (u IN ('all', o.rolname) OR starts_with(u, '/') OR starts_with(u, '+')
          AND EXISTS (SELECT FROM pg_roles g WHERE g.rolname = substr(u, 2) AND pg_has_role(o.rolname, g.oid, 'MEMBER')))
        AND (h.auth_method <> 'cert' OR m.name IS NULL OR EXISTS (SELECT FROM pg_ident_file_mappings i WHERE i.error IS NULL AND i.map_name = m.name
          AND (i.pg_username IN ('all', o.rolname) OR left(i.pg_username, 1) IN ('/', '+') OR position('\1' IN i.pg_username) > 0
            AND (i.sys_name !~ '^/\^\(?chancery_' OR starts_with(o.rolname, 'chancery_'))))));
EXCEPTION WHEN undefined_table THEN
  RETURN true;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA chancery_logins FROM PUBLIC;
DO $$
DECLARE
  owner name;
BEGIN
  SELECT a.rolname INTO STRICT owner FROM pg_roles a JOIN pg_database d ON d.datdba = a.oid WHERE d.datname = current_database();
  EXECUTE format('GRANT USAGE ON SCHEMA chancery_logins TO %I', owner);
  EXECUTE format('GRANT EXECUTE ON FUNCTION chancery_logins.add(text, boolean), chancery_logins.drop(text), chancery_logins.end_standing(integer), chancery_logins.owner_enters() TO %I',
    owner);
END $$;

COMMIT;
