-- Which server it is; why the service cannot work with this database, with what to do about it; whether migrations have run.
SELECT 'PostgreSQL ' || current_setting('server_version') AS server,
    CASE
        WHEN getdatabaseencoding() NOT IN ('UTF8', 'SQL_ASCII') THEN ARRAY[
            format('the database %I has the encoding %s, which cannot hold every name', current_database(), getdatabaseencoding()),
            format('make one with CREATE DATABASE name OWNER %I ENCODING ''UTF8'' TEMPLATE template0, and point DATABASE_URL at it', current_user)]
        WHEN pg_is_in_recovery() THEN ARRAY[
            'the server is a standby, which takes no writes',
            'point DATABASE_URL at the primary, or promote it with SELECT pg_promote()']
        WHEN current_setting('transaction_read_only') = 'on' THEN ARRAY[
            format('the role %I is read-only in the database %I', current_user, current_database()),
            format('as a superuser run: ALTER ROLE %I RESET default_transaction_read_only; ALTER DATABASE %I RESET default_transaction_read_only', current_user, current_database())]
        WHEN current_schema() IS NULL THEN ARRAY[
            format('the role %I has no schema in its search_path that it may use', current_user),
            format('as a superuser, in the database %2$I, run: GRANT USAGE, CREATE ON SCHEMA public TO %1$I; ALTER ROLE %1$I IN DATABASE %2$I SET search_path = public', current_user, current_database())]
        WHEN closed IS NOT NULL THEN ARRAY[
            format('the role %I may not read and write the tables %s', current_user, closed),
            format('as their owner, in the database %3$I, run: GRANT SELECT, INSERT, UPDATE, DELETE ON %2$s TO %1$I', current_user, closed, current_database())]
        WHEN NOT migrated AND NOT has_schema_privilege(current_schema(), 'CREATE') THEN ARRAY[
            format('the role %I may not create tables in the schema %I of the database %I', current_user, current_schema(), current_database()),
            format('as a superuser, in that database, run: GRANT CREATE ON SCHEMA %I TO %I', current_schema(), current_user)]
    END AS obstacle,
    migrated AS has_migrations
FROM (SELECT to_regclass('_sqlx_migrations') IS NOT NULL, string_agg(relname, ', ' ORDER BY relname)
      FROM pg_class
      WHERE oid IN (to_regclass('tenants'), to_regclass('users'), to_regclass('extensions'), to_regclass('apply_audit_logs'), to_regclass('_sqlx_migrations'))
      AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
               AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))) AS found (migrated, closed)
