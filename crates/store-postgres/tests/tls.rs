//! How far a server's certificate is checked, by the modes of the URL.

use vaquero_store_postgres::{OpenError, PostgresConfig, inspect};
use vaquero_testkit::Database;

#[tokio::test]
async fn certificates_are_checked_as_the_url_asks() {
    let Some(database) = Database::create().await.expect("a server") else { return };
    let Ok(roots) = std::env::var("VAQUERO_TEST_POSTGRES_ROOTS") else {
        println!("left out: the test server has no certificate");
        return;
    };
    let by_address = database.url.replace("@localhost:", "@127.0.0.1:");
    let look = async |url: &str, query: &str| {
        inspect(&PostgresConfig::new(format!("{url}?{query}"))).await
    };
    for (query, encrypted) in [("sslmode=disable", false), ("sslmode=prefer", true), ("", true)] {
        let found = look(&database.url, query).await.expect(query);
        assert_eq!(found.encrypted, encrypted, "{query}");
    }
    let full = format!("sslmode=verify-full&sslrootcert={roots}");
    assert!(look(&database.url, &full).await.expect("its name and root are right").encrypted);
    let chain = format!("sslmode=verify-ca&sslrootcert={roots}");
    assert!(look(&by_address, &chain).await.expect("its root is right").encrypted);
    assert!(look(&by_address, "sslmode=require").await.expect("nothing is checked").encrypted);
    for (url, query) in [(&by_address, full.as_str()), (&database.url, "sslmode=verify-full")] {
        let refused = look(url, query).await.expect_err("it must not be trusted");
        assert!(matches!(refused, OpenError::Unreachable { .. }), "{query}: {refused}");
        assert!(refused.to_string().contains("certificate"), "{query}: {refused}");
    }
    let missing = look(&database.url, "sslmode=verify-full&sslrootcert=/none").await;
    let missing = missing.expect_err("there are no roots").to_string();
    assert!(missing.contains("sslrootcert /none cannot be read"), "{missing}");
}
