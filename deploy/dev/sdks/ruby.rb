# Does what the matrix of docs/sdks.md lists with the Open Job Spec's SDK for Ruby, as it is. Prints a line for each: what, a tab, and ok
# or what went wrong.
require "ojs"
require "securerandom"

URL = ARGV[0]
QUEUE = "rb-#{SecureRandom.hex(4)}"
PARKED = "#{QUEUE}-parked"
LIMIT_S = 20

client = OJS::Client.new(URL)
worker = OJS::Worker.new(URL, queues: [QUEUE], concurrency: 2, poll_interval: 0.1)
failed = {}

worker.register("sdk.echo") { |context| { "echo" => context.job.args } }
worker.register("sdk.fails_once") do |context|
  unless failed[context.job.id]
    failed[context.job.id] = true
    raise "not yet"
  end
  { "attempt" => context.attempt }
end
worker.register("sdk.fails") { |_| raise "never" }

def check(what, is_so)
  raise "#{what} is wrong" unless is_so
end

# Timeout would leave an answer in the connection
def wait_until
  deadline = Time.now + LIMIT_S
  loop do
    found = yield
    return found if found
    raise "waited in vain" if Time.now > deadline
    sleep 0.05
  end
end

in_state = lambda do |id, wanted|
  wait_until do
    job = client.get_job(id)
    job if job.state == wanted
  end
end
steps = ->(count) { Array.new(count) { |n| OJS::Step.new(type: "sdk.echo", args: [n], queue: QUEUE) } }
workflow = lambda do |definition|
  made = client.workflow(definition)
  made = made["workflow"] || made if made.is_a?(Hash)
  id = made.is_a?(Hash) ? made["id"] : made.id
  wait_until do
    found = client.get_workflow(id)
    found = found["workflow"] || found if found.is_a?(Hash)
    (found.is_a?(Hash) ? found["state"] : found.state) == "completed"
  end
end
retry_policy = OJS::RetryPolicy.new(max_attempts: 2, initial_interval: "PT0.1S")

attempts = {
  "enqueue" => lambda do
    job = client.enqueue("sdk.parked", [1, { "a" => [true, nil] }], queue: PARKED, tags: ["x"], meta: { "m" => 1 })
    check("the job", job.state == "available" && job.args == [1, { "a" => [true, nil] }])
  end,
  "enqueue many" => lambda do
    jobs = client.enqueue_batch(Array.new(3) { |n| { type: "sdk.parked", args: [n], queue: PARKED } })
    check("the arguments", jobs.map(&:args) == [[0], [1], [2]])
  end,
  "look up" => lambda do
    job = client.enqueue("sdk.parked", [1], queue: PARKED)
    check("the job", client.get_job(job.id).args == [1])
  end,
  "cancel" => lambda do
    job = client.enqueue("sdk.parked", [1], queue: PARKED)
    check("the state", client.cancel_job(job.id).state == "cancelled")
  end,
  "unique" => lambda do
    policy = OJS::UniquePolicy.new(keys: %w[type args], period: "PT1M", on_conflict: "reject")
    client.enqueue("sdk.parked", ["u"], queue: PARKED, unique: policy)
    begin
      client.enqueue("sdk.parked", ["u"], queue: PARKED, unique: policy)
    rescue OJS::ConflictError
      next
    end
    raise "the duplicate was not refused"
  end,
  "work" => lambda do
    job = client.enqueue("sdk.echo", ["a"], queue: QUEUE)
    check("the result", in_state.call(job.id, "completed").result == { "echo" => ["a"] })
  end,
  "retry" => lambda do
    job = client.enqueue("sdk.fails_once", [], queue: QUEUE, retry: retry_policy)
    check("the result", in_state.call(job.id, "completed").result == { "attempt" => 2 })
  end,
  "discard" => lambda do
    job = client.enqueue("sdk.fails", [], queue: QUEUE, retry: retry_policy)
    in_state.call(job.id, "discarded")
  end,
  "dead letters" => lambda do
    job = client.enqueue("sdk.fails", [], queue: QUEUE, retry: OJS::RetryPolicy.new(max_attempts: 1, on_exhaustion: "dead_letter"))
    in_state.call(job.id, "discarded")
    check("the list", client.dead_letter_jobs.any? { |dead| (dead.is_a?(Hash) ? dead["id"] : dead.id) == job.id })
    client.retry_dead_letter(job.id)
  end,
  "chain" => -> { workflow.call(OJS.chain(*steps.call(2), name: "c")) },
  "group" => -> { workflow.call(OJS.group(*steps.call(2), name: "g")) },
  "batch" => -> { workflow.call(OJS.batch(steps.call(2), name: "b", on_success: steps.call(1).first)) },
  "cron" => lambda do
    client.register_cron_job(name: QUEUE, cron: "0 3 * * *", type: "sdk.echo", args: [], queue: QUEUE)
    check("the list", client.list_cron_jobs.to_s.include?(QUEUE))
    client.unregister_cron_job(QUEUE)
  end,
  "queues" => lambda do
    check("the list", client.queues.any? { |queue| queue.to_s.include?(PARKED) || (queue.respond_to?(:name) && queue.name == PARKED) })
    client.pause_queue(PARKED)
    client.resume_queue(PARKED)
    client.queue_stats(PARKED)
  end,
  "health, manifest" => lambda do
    check("health", client.health["status"] == "ok")
    check("the manifest", client.manifest.to_s.include?("ojs"))
  end,
}

Thread.new { worker.start }
attempts.each do |name, attempt|
  said = begin
    attempt.call
    "ok"
  rescue StandardError => error
    "#{error.class}: #{error.message}".split.join(" ")
  end
  puts "#{name}\t#{said}"
  $stdout.flush
end
exit!(0)
