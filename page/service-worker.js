// Keeps the page's files, so that it works without a network, and serves them with the headers that allow threads.

importScripts("files.js");  // VERSION, FILES and RUNTIMES, written by export.py
const RUNTIME = self.location.search.slice(1);  // the one that this browser uses
const NAME = `exposure-correction-${self.VERSION}-${RUNTIME}`;
const POLICY = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; " +
  "connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

self.addEventListener("install", event => {
  event.waitUntil((async () => {
    const cache = await caches.open(NAME);
    await Promise.all([...self.FILES, ...self.RUNTIMES[RUNTIME] ?? self.RUNTIMES.wasm].map(async file => {
      const response = await fetch(file, {cache: "no-cache"});
      if (!response.ok) throw new Error(`${file}: ${response.status}`);
      // whole, not as a stream: on a nearly full disk Chromium keeps no large one
      await cache.put(file, new Response(await response.arrayBuffer(), response));
    }));
    await self.skipWaiting();
  })());
});

self.addEventListener("activate", event => event.waitUntil((async () => {
  for (const name of await caches.keys()) {
    if (name.startsWith("exposure-correction-") && name !== NAME) await caches.delete(name);
  }
  await self.clients.claim();
})()));

self.addEventListener("fetch", event => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== self.location.origin) return;
  event.respondWith((async () => {
    const cache = await caches.open(NAME);
    const kept = await cache.match(url.pathname.endsWith("/index.html") ? "./" : event.request, {ignoreSearch: true});
    const response = kept ?? await fetch(event.request);
    if (!response.ok || response.type === "opaque") return response;
    const headers = new Headers(response.headers);
    headers.set("Cross-Origin-Opener-Policy", "same-origin");
    headers.set("Cross-Origin-Embedder-Policy", "require-corp");
    headers.set("Content-Security-Policy", POLICY);
    return new Response(response.body, {status: response.status, statusText: response.statusText, headers});
  })());
});
