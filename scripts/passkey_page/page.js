"use strict";

// What the browser is asked and what it answers goes through as text, unchanged: Riskgate writes the one and reads the
// other.

const byId = (id) => document.getElementById(id);
let pending = null;

async function ask(path, body) {
  const response = await fetch(path, body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.reason);
  return answer;
}

// --- Passkeys. Browsers before 2025 leave reading and writing JSON to the page. ---

const fromBase64url = (text) =>
  Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
const toBase64url = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const named = (credentials) => (credentials ?? []).map((one) => ({ ...one, id: fromBase64url(one.id) }));

function creationOptions(json) {
  const options = JSON.parse(json);
  if (PublicKeyCredential.parseCreationOptionsFromJSON) return PublicKeyCredential.parseCreationOptionsFromJSON(options);
  return {
    ...options,
    challenge: fromBase64url(options.challenge),
    user: { ...options.user, id: fromBase64url(options.user.id) },
    excludeCredentials: named(options.excludeCredentials),
  };
}

function requestOptions(json) {
  const options = JSON.parse(json);
  if (PublicKeyCredential.parseRequestOptionsFromJSON) return PublicKeyCredential.parseRequestOptionsFromJSON(options);
  return {
    ...options,
    challenge: fromBase64url(options.challenge),
    allowCredentials: named(options.allowCredentials),
  };
}

function written(credential) {
  if (credential.toJSON) return JSON.stringify(credential.toJSON());
  const response = {};
  for (const part of ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"]) {
    if (credential.response[part]) response[part] = toBase64url(credential.response[part]);
  }
  return JSON.stringify({
    id: credential.id,
    rawId: toBase64url(credential.rawId),
    type: credential.type,
    authenticatorAttachment: credential.authenticatorAttachment ?? undefined,
    response,
    clientExtensionResults: credential.getClientExtensionResults(),
  });
}

async function enrol() {
  const begun = await ask("api/passkeys/begin", {});
  const credential = await navigator.credentials.create({ publicKey: creationOptions(begun.options) });
  await ask("api/passkeys/finish", { enrollment_id: begun.enrollment_id, registration: written(credential) });
  await show();
}

async function buy(article) {
  pending = null;
  decided(await ask("api/purchases", { article }));
}

async function approve() {
  const begun = await ask("api/approvals/begin", { transaction_id: pending.transaction_id });
  const credential = await navigator.credentials.get({ publicKey: requestOptions(begun.options) });
  decided(await ask("api/approvals/finish", { challenge_id: begun.challenge_id, assertion: written(credential) }));
}

// --- What is shown ---

function decided(decision) {
  pending = decision.needs_proof ? decision : null;
  byId("approval").hidden = !pending;
  byId("amount").textContent = decision.amount;
  byId("payee").textContent = decision.payee;
  byId("why").textContent = decision.reasons.join(" ");
  byId("outcome").textContent = decision.outcome;
  byId("about").textContent = `${decision.article}, ${decision.amount} to ${decision.payee}`
    + (decision.available ? `; ${decision.available} is left` : "");
  byId("decision").hidden = false;
}

function button(label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.addEventListener("click", () => attempt(action));
  return made;
}

function item(text, ...parts) {
  const made = document.createElement("li");
  made.append(text, ...parts);
  return made;
}

async function show() {
  const state = await ask("api/state");
  byId("customers").replaceChildren(...state.customers.map((customer) => {
    const choice = button(customer, () => logIn(customer));
    choice.disabled = customer === state.customer;
    choice.dataset.customer = customer;
    return choice;
  }));
  byId("passkeys").replaceChildren(...state.passkeys.map((one) => item(`${one.name}, level ${one.level}`)));
  byId("articles").replaceChildren(...state.articles.map((article) => {
    const choice = button("Buy", () => buy(article.id));
    choice.dataset.article = article.id;
    return item(`${article.name}, ${article.amount}, from ${article.payee}`, choice);
  }));
  byId("enrol").hidden = state.passkeys.length > 0;
  byId("passkey").hidden = byId("shop").hidden = !state.customer;
}

async function logIn(customer) {
  pending = null;
  byId("approval").hidden = byId("decision").hidden = true;
  await ask("api/session", { customer });
  await show();
}

// One thing at a time; what went wrong is said, by its reason.
async function attempt(action) {
  document.body.inert = true;
  byId("problem").textContent = "";
  try {
    await action();
  } catch (error) {
    byId("problem").textContent = error.name === "Error" ? error.message : `${error.name}: ${error.message}`;
  } finally {
    document.body.inert = false;
    document.body.dataset.done = Number(document.body.dataset.done ?? 0) + 1;
  }
}

byId("enrol").addEventListener("click", () => attempt(enrol));
byId("approve").addEventListener("click", () => attempt(approve));
attempt(window.PublicKeyCredential ? show : () => { throw new Error("This browser has no passkeys."); });
