-- Put in front of scripts that count for a subscription.

-- Figures go 90 days after the last of them changed, so that nothing stays of a subscription that was removed meanwhile.
local function keep_figures(figures)
  redis.call('PEXPIRE', figures, 7776000000)
end
