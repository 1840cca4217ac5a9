// What makes the pages livelier; without it they work, with more loading. No framework, nothing to build.
"use strict";

const seconds = (value) => (value < 60 ? `${value.toFixed(0)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);
const parsed = (html) => new DOMParser().parseFromString(html, "text/html");

// One job: follow its events. Screen readers hear each stage, not each per cent.
function follow(live) {
  const bar = document.getElementById("bar");
  const now = document.getElementById("now");
  const said = document.getElementById("said");
  const source = new EventSource(live.dataset.events);
  const read = (event) => JSON.parse(event.data);
  source.addEventListener("state", (event) => {
    const news = read(event);
    if (news.state === "running") now.textContent = `Running, attempt ${news.attempt}.`;
    if (news.state === "queued") now.textContent = "Queued.";
    said.textContent = now.textContent;
  });
  source.addEventListener("stage", (event) => {
    said.textContent = `Stage ${read(event).stage}`;
  });
  source.addEventListener("progress", (event) => {
    const news = read(event);
    bar.value = news.progress;
    const left = news.eta_seconds === null ? "" : `, about ${seconds(news.eta_seconds)} left`;
    now.textContent = `${news.stage}, ${Math.round(100 * news.progress)} %${left}.`;
  });
  source.addEventListener("outcome", () => {
    source.close();
    said.textContent = "The job has ended.";
    location.reload();
  });
  source.onerror = () => {
    // The browser comes back by itself, unless the service refused: then look at the page again now and then.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
  };
}

// All jobs: while some move, look again every few seconds and put the new table in place.
function refresh(jobs) {
  if (jobs.dataset.moving !== "yes") return;
  setTimeout(async () => {
    const focused = jobs.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const fresh = answer.ok && !document.hidden ? parsed(await answer.text()).getElementById("jobs") : null;
      if (fresh) {
        jobs.replaceWith(fresh);
        if (focused) [...fresh.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
        jobs = fresh;
      }
    } catch {
      // The service is away for a moment.
    }
    refresh(jobs);
  }, 3000);
}

// An upload: show how far it is, then offer the file in the form below without loading the page anew.
function upload(form) {
  const bar = form.querySelector("progress");
  const result = form.querySelector(".result");
  const button = form.querySelector("button");
  const role = form.dataset.role;
  const over = (text, wrong) => {
    bar.hidden = true;
    button.disabled = false;
    result.textContent = text;
    result.className = wrong ? "error result" : "help result";
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const file = form.elements.file.files[0];
    const request = new XMLHttpRequest();
    request.open("POST", form.action);
    request.upload.onprogress = (sent) => {
      if (sent.lengthComputable) bar.value = sent.loaded / sent.total;
    };
    request.onerror = () => over("The connection broke; nothing was stored. Try again.", true);
    request.onload = () => {
      const page = parsed(request.responseText);
      const id = new URL(request.responseURL).searchParams.get(role);
      const known = id && page.querySelector(`#job select[name="${role}"] option[value="${CSS.escape(id)}"]`);
      if (request.status !== 200 || !known) {
        const problem = page.querySelector(".problem");
        over(problem ? problem.innerText.replace(/\s+/g, " ").trim() : `Refused (${request.status}).`, true);
        return;
      }
      for (const select of document.querySelectorAll("#job select")) {
        const theirs = page.querySelector(`#job select[name="${select.name}"]`);
        if (!["model", "calibration", "validation", "masks"].includes(select.name) || !theirs) continue;
        const chosen = select.name === role ? id : select.value;
        select.replaceChildren(...[...theirs.options].map((option) => document.importNode(option, true)));
        select.value = chosen;
      }
      over(`${file.name} is there and chosen below.`, false);
    };
    bar.hidden = false;
    bar.value = 0;
    button.disabled = true;
    result.className = "help result";
    result.textContent = `Uploading ${file.name}`;
    request.send(new FormData(form));
  });
}

// The form: show the options of what is chosen only.
function choose(form) {
  const show = () => {
    for (const options of form.querySelectorAll("[data-chooser]")) {
      options.hidden = form.elements[options.dataset.chooser].value !== options.dataset.choice;
    }
  };
  form.addEventListener("change", show);
  form.addEventListener("submit", () => {
    // Not twice: the form also carries a key by which the service knows a repetition.
    setTimeout(() => form.querySelectorAll("button").forEach((button) => (button.disabled = true)));
  });
  addEventListener("pageshow", () => {
    form.querySelectorAll(".actions button[formaction]").forEach((button) => (button.disabled = false));
    show();
  });
  show();
}

const live = document.getElementById("live");
if (live) follow(live);
const jobs = document.getElementById("jobs");
if (jobs) refresh(jobs);
document.querySelectorAll("form.upload").forEach(upload);
const form = document.getElementById("job");
if (form) choose(form);
(document.getElementById("errors") || document.getElementById("plan"))?.focus();
