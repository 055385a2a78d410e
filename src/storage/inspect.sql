-- Which server it is; why the service cannot work with this database, and what to do; whether migrations have run.
SELECT 'PostgreSQL ' || current_setting('server_version'),
    CASE
        WHEN getdatabaseencoding() NOT IN ('UTF8', 'SQL_ASCII') THEN format(
            'the database %1$I has the encoding %2$s, which cannot hold every name; make one with CREATE DATABASE name OWNER %3$I ENCODING ''UTF8'' TEMPLATE template0, and point DATABASE_URL at it',
            current_database(), getdatabaseencoding(), current_user)
        WHEN pg_is_in_recovery() THEN
            'the server is a standby, which takes no writes; point DATABASE_URL at the primary, or promote it with SELECT pg_promote()'
        WHEN current_setting('transaction_read_only') = 'on' THEN format(
            'the role %1$I is read-only in the database %2$I; as a superuser run: ALTER ROLE %1$I RESET default_transaction_read_only; ALTER DATABASE %2$I RESET default_transaction_read_only',
            current_user, current_database())
        WHEN current_schema() IS NULL THEN format(
            'the role %1$I has no schema in its search_path that it may use; as a superuser, in the database %2$I, run: GRANT USAGE, CREATE ON SCHEMA public TO %1$I; ALTER ROLE %1$I IN DATABASE %2$I SET search_path = public',
            current_user, current_database())
        WHEN closed IS NOT NULL THEN format(
            'the role %1$I may not read and write the tables %2$s; as their owner, in the database %3$I, run: GRANT SELECT, INSERT, UPDATE, DELETE ON %2$s TO %1$I',
            current_user, closed, current_database())
        WHEN NOT migrated AND NOT has_schema_privilege(current_schema(), 'CREATE') THEN format(
            'the role %1$I may not create tables in the schema %2$I of the database %3$I; as a superuser, in that database, run: GRANT CREATE ON SCHEMA %2$I TO %1$I',
            current_user, current_schema(), current_database())
    END,
    migrated
FROM (SELECT to_regclass('_sqlx_migrations') IS NOT NULL, string_agg(relname, ', ' ORDER BY relname)
      FROM pg_class
      WHERE oid IN (to_regclass('tenants'), to_regclass('users'), to_regclass('extensions'), to_regclass('apply_audit_logs'), to_regclass('_sqlx_migrations'))
      AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
               AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))) AS found (migrated, closed)
