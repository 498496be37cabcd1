"""Agents, environments, models."""

import anthropic
import pytest
from conftest import NEW, TOOLSET, unique


def test_an_agent_is_resolved_versioned_and_archived(client):
    agent = client.beta.agents.create(name="a", model="claude-sonnet-5", tools=[TOOLSET], metadata={"team": "x"})
    assert agent.version == 1 and agent.model.id == "claude-sonnet-5"
    assert agent.tools[0].default_config.permission_policy.type == "always_allow"
    assert client.beta.agents.update(agent.id, version=1, name="a").version == 1
    changed = client.beta.agents.update(agent.id, version=1, system="Be brief.", metadata={"team": None, "b": "c"})
    assert (changed.version, changed.system, changed.metadata) == (2, "Be brief.", {"b": "c"})
    with pytest.raises(anthropic.ConflictError):
        client.beta.agents.update(agent.id, version=1, name="b")
    assert [version.version for version in client.beta.agents.versions.list(agent.id)] == [2, 1]
    assert client.beta.agents.retrieve(agent.id, version=1).system is None
    assert client.beta.agents.archive(agent.id).archived_at
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        client.beta.agents.update(agent.id, version=2, name="c")
    assert agent.id not in [found.id for found in client.beta.agents.list()]
    assert agent.id in [found.id for found in client.beta.agents.list(include_archived=True)]


def test_what_is_wrong_with_a_request_is_named_with_its_path(client):
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.colour"):
        client.beta.agents.create(name="a", model="m", tools=[{**TOOLSET, "colour": "red"}])
    with pytest.raises(anthropic.BadRequestError, match="name: minimum string length is 1"):
        client.beta.agents.create(name="", model="m")
    with pytest.raises(anthropic.NotFoundError):
        client.beta.agents.retrieve("agent_none")


def test_lists_page_without_gaps(client):
    made = [client.beta.agents.create(name=f"p{number}", model="m").id for number in range(5)]
    found = [agent.id for agent in client.beta.agents.list(limit=2)]
    assert [one for one in found if one in made] == made[::-1]


def test_environments(client):
    name = unique("env")
    environment = client.beta.environments.create(name=name)
    assert environment.config.type == "cloud" and environment.config.networking.type == "unrestricted"
    assert environment.config.packages.pip == []
    with pytest.raises(anthropic.ConflictError):
        client.beta.environments.create(name=name)
    changed = client.beta.environments.update(environment.id, description="d", metadata={"a": "b"})
    assert (changed.description, changed.metadata) == ("d", {"a": "b"})
    assert client.beta.environments.archive(environment.id).archived_at
    assert client.beta.environments.delete(environment.id).type == "environment_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.beta.environments.retrieve(environment.id)


def test_vaults_and_credentials(client):
    vaults = client.beta.vaults
    vault = vaults.create(display_name="mine", metadata={"a": "b"})
    assert vaults.retrieve(vault.id).display_name == "mine"
    assert vaults.update(vault.id, display_name="yours").metadata == {"a": "b"}
    assert vault.id in [found.id for found in vaults.list()]
    bearer = vaults.credentials.create(
        vault.id, auth={"type": "static_bearer", "mcp_server_url": "https://mcp.example.com/a", "token": "hush"}
    )
    assert bearer.auth.type == "static_bearer" and "hush" not in bearer.to_json()
    with pytest.raises(anthropic.ConflictError):
        vaults.credentials.create(
            vault.id, auth={"type": "static_bearer", "mcp_server_url": "https://MCP.example.com/a/", "token": "x"}
        )
    oauth = vaults.credentials.create(
        vault.id,
        auth={
            "type": "mcp_oauth",
            "mcp_server_url": "https://mcp.example.com/b",
            "access_token": "hush",
            "refresh": {
                "client_id": "me",
                "refresh_token": "hush",
                "token_endpoint": "https://auth.example.com/token",
                "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "hush"},
            },
        },
    )
    assert oauth.auth.refresh.token_endpoint_auth.type == "client_secret_post" and "hush" not in oauth.to_json()
    changed = vaults.credentials.update(
        oauth.id, vault_id=vault.id, auth={"type": "mcp_oauth", "access_token": "hush again"}, display_name="named"
    )
    assert changed.display_name == "named"
    assert vaults.credentials.mcp_oauth_validate(oauth.id, vault_id=vault.id).status == "unknown"
    if NEW:
        variable = vaults.credentials.create(
            vault.id,
            auth={
                "type": "environment_variable",
                "secret_name": "TOKEN",
                "secret_value": "hush",
                "networking": {"type": "limited", "allowed_hosts": ["api.example.com"]},
                "injection_location": {"header": True},
            },
        )
        assert variable.auth.injection_location.body is False and "hush" not in variable.to_json()
    assert oauth.id in [found.id for found in vaults.credentials.list(vault.id, limit=1)]
    assert vaults.credentials.archive(oauth.id, vault_id=vault.id).archived_at
    assert vaults.credentials.delete(oauth.id, vault_id=vault.id).type == "vault_credential_deleted"
    assert vaults.archive(vault.id).archived_at
    assert vaults.credentials.retrieve(bearer.id, vault_id=vault.id).archived_at
    assert vaults.delete(vault.id).type == "vault_deleted"


def test_models(client):
    assert "scripted" in [model.id for model in client.models.list()]
    assert client.models.retrieve("scripted").id == "scripted"


def test_keys(client):
    stranger = anthropic.Anthropic(base_url=str(client.base_url), api_key="no-such-key-0123456789", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        list(stranger.beta.agents.list())


@pytest.mark.skipif(not NEW, reason="the beta models client is newer")
def test_beta_models(client):
    assert "scripted" in [model.id for model in client.beta.models.list()]
