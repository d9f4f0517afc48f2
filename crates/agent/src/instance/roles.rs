//! Roles and databases that every primary must have, and their passwords.

use super::files::secret;
use crate::sql;
use holdfast_core::{names, wire, wire::AgentConfig};
use std::time::Duration;

/// What the replication role may call beside replicating: what pg_rewind reads, and closing a WAL segment for a backup.
const GRANTED: [&str; 8] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
    "pg_switch_wal()",
    "pg_control_system()",
    "pg_control_checkpoint()",
    "pg_create_restore_point(text)",
];

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The statement that gives a role its password, as a SCRAM verifier: the password itself is in no statement and no log.
fn password(role: &str, password: &str) -> String {
    let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
    format!("alter role {} with login password {};", identifier(role), literal(&verifier))
}

/// Makes sure of roles, passwords and the application's database. Safe to repeat; called by each new primary.
pub async fn ensure(config: &AgentConfig) -> anyhow::Result<()> {
    let session = sql::local("postgres").await?;
    let limit = Duration::from_secs(30);
    let have = session.column("select rolname from pg_roles").await?;
    let mut sql = String::new();
    for (role, attributes) in
        [(names::REPLICATION_ROLE, "login replication"), (config.app_owner.as_str(), "login")]
    {
        if !have.iter().any(|r| r == role) {
            sql.push_str(&format!("create role {} with {attributes};", identifier(role)));
        }
    }
    sql.push_str(&password(names::REPLICATION_ROLE, &secret(wire::REPLICATION_FOLDER, "password")?));
    sql.push_str(&password(&config.app_owner, &secret(wire::APP_FOLDER, "password")?));
    if config.superuser {
        sql.push_str(&password("postgres", &secret(wire::SUPERUSER_FOLDER, "password")?));
    } else {
        // One that was enabled before must not let anybody in through a line of spec.postgresql.pgHba.
        sql.push_str("alter role postgres password null;");
    }
    let role = identifier(names::REPLICATION_ROLE);
    for function in GRANTED {
        sql.push_str(&format!("grant execute on function pg_catalog.{function} to {role};"));
    }
    sql.push_str(&format!("grant pg_monitor to {role};"));
    session.execute(&sql, limit).await?;
    let databases = session.column("select datname from pg_database").await?;
    if !databases.contains(&config.app_database) {
        // Not in a transaction: CREATE DATABASE refuses to be.
        let (database, owner) = (identifier(&config.app_database), identifier(&config.app_owner));
        session.execute(&format!("create database {database} owner {owner}"), limit).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_statement_carries_a_password() {
        let sql = password("ow\"ner", "correct horse");
        assert!(sql.starts_with("alter role \"ow\"\"ner\" with login password 'SCRAM-SHA-256$"));
        assert!(!sql.contains("correct horse"));
    }
}
